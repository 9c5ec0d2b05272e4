"""WIDER FACE: wider_face_split/wider_face_train_bbx_gt.txt and the like, one for each split, with
the images in WIDER_train/images.

For each image, as in the dataset's readme, there is a line with its name, a line with the
number of faces, and a line `x y w h blur expression illumination invalid occlusion pose` for
each face, or a line of zeros if there is none. The class is `face`, which --default-class
changes. Invalid faces are ignored.
"""

from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.files import is_image
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.shapes import are_numbers
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_text
from data_prep.reading.values import is_set, number

_COLUMNS = ("x", "y", "w", "h", "blur", "expression", "illumination", "invalid", "occlusion", "pose")
_OPENED = 20  # files of each folder of a sample
_MAX_LINE = 1000  # characters


def recognise(sample: Sample) -> str | None:
    path = next((path for path in sample.first_of_folders(".txt", _OPENED) if _names_image(path)), None)
    return f"{path} has the name of an image, a number of faces, and a row for each face" if path else None


def _names_image(path: Path) -> bool:
    """Whether a file begins with the name of an image, a number and a row of numbers."""
    try:
        with open(path, encoding="utf-8-sig") as text:
            name, count, row = (text.readline(_MAX_LINE).strip() for _ in range(3))
    except (OSError, ValueError):  # the reader of the chosen format reports it
        return False
    return is_image(Path(name)) and count.isdecimal() and _numbers(row) is not None


def _numbers(line: str) -> list[Any] | None:
    """The numbers of a face; None if the line is not one."""
    values = [number(cell) for cell in line.split()]
    return values if len(values) in (4, len(_COLUMNS)) and are_numbers(values, len(values)) else None


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["*_bbx_gt.txt", "*.txt"], options, _names_image)
    found = Source(Spool(options.scratch), layout="xywh", warnings=warnings, folder=folder)
    for file in files:
        try:
            _read_file(file, options, found)
        except UserError as error:
            found.errors.append(str(error))
    return found


def _read_file(file: AnnotationFile, options: Options, found: Source) -> None:
    split = file.path.name.removeprefix("wider_face_").removesuffix("_bbx_gt.txt")
    folders = [parent / f"WIDER_{split}" / "images" for parent in file.path.parents[:2]]
    images = image_finder_for(file, options, [folder for folder in folders if folder.is_dir()])
    numbered = enumerate(read_text(file.path).splitlines(), 1)
    lines = [(line_number, line.strip()) for line_number, line in numbered if line.strip()]
    start = 0
    while start < len(lines):
        name, count = _read_head(file, lines[start : start + 2])
        end = start + 2 + count
        if end > len(lines):
            raise UserError(f"{file}: ends after {len(lines) - start - 2} of the {count} faces of {name}.")
        image_path = images.find(name)
        rows = [_read_face(file, *line, options) for line in lines[start + 2 : end]]
        found.items.append(Item(image_name(name, image_path, file), str(image_path), rows, file.split))
        has_zeros = count == 0 and end < len(lines) and _numbers(lines[end][1]) is not None
        start = end + has_zeros


def _read_head(file: AnnotationFile, lines: list[tuple[int, str]]) -> tuple[str, int]:
    """The name of an image and the number of its faces."""
    (line_number, name), (_, count) = lines[0], lines[-1]
    if not is_image(Path(name)):
        raise UserError(f"{file}:{line_number}: needs the name of an image, got {name:.100}")
    if not count.isdecimal():
        raise UserError(f"{file}:{lines[-1][0]}: needs the number of faces, got {count:.100}")
    return name, int(count)


def _read_face(file: AnnotationFile, line_number: int, line: str, options: Options) -> Row:
    values = _numbers(line)
    if values is None:
        raise UserError(f"{file}:{line_number}: needs 4 or {len(_COLUMNS)} numbers, got {line:.100}")
    extra = dict(zip(_COLUMNS[4:], values[4:], strict=False))
    return Row(values[:4], options.default_class or "face", is_set(extra.pop("invalid", 0)), extra)
