"""What the writers of an export are given, and the images that every export has."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from boxtune.common.errors import reading
from boxtune.data.dataset import SPLIT_FOLDERS
from boxtune.data.images import load_image
from boxtune.data.records import Record, flat_name, image_path
from boxtune.families.family import Family

# For images of these modes, Pillow's own conversion, which trainers use, gives the same RGB pixels as boxtune's.
_PLAIN_MODES = {"1", "L", "P", "RGB", "CMYK"}


@dataclass(frozen=True)
class ExportJob:
    """One export. `staged` is the folder to fill, which is renamed to `out` in the end."""

    data_dir: Path
    splits: dict[str, list[Record]]
    classes: list[str]
    out: Path
    staged: Path
    copy_images: bool


@dataclass(frozen=True)
class ModelInput:
    """The model family that a trainer's export is for, and the pixel budget of the training."""

    family: Family
    min_pixels: int
    max_pixels: int


def place_images(job: ExportJob, split: str, suffixes: set[str] | None = None) -> list[str]:
    """Put a split's images into images/SPLIT of the export, as links or copies. Returns their file names, in order.

    Tools differ in whether they apply an EXIF rotation, and in how they convert transparent and 16-bit pixels. Such images,
    and those whose extension is not in `suffixes`, are rewritten as PNG, upright and RGB as boxtune reads them. A name is an
    id without folders, because YOLO tools replace the last `images` of a path by `labels`.
    """
    folder = job.staged / "images" / SPLIT_FOLDERS[split]
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for record in job.splits[split]:
        source = image_path(record, job.data_dir)
        is_usable = _is_plain(source) and (suffixes is None or source.suffix.lower() in suffixes)
        name = flat_name(record["id"]) + (source.suffix if is_usable else ".png")
        if not is_usable:
            with reading(str(source), "Prepare the data again."):
                image = load_image(source)
            image.save(folder / name)
        elif job.copy_images:
            shutil.copyfile(source, folder / name)
        else:
            (folder / name).symlink_to(source.resolve())
        names.append(name)
    return names


def _is_plain(path: Path) -> bool:
    """Whether all tools read the same upright RGB image from the file."""
    with Image.open(path) as image:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return is_upright and image.mode in _PLAIN_MODES and "transparency" not in image.info
