"""Finding and reading the files of a source: annotations, the pictures they name, and names that are safe to write."""

import io
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

from boxtune.common.errors import UserError
from boxtune.common.files import IMAGE_SUFFIXES, files_below, is_image
from data_prep.reading.names import ALIASES, split_of
from data_prep.reading.source import Options, Source

_FORMAT_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


def existing(source: Path) -> Path:
    """The source itself. Raises UserError where there is no such file or folder."""
    if not source.exists():
        raise UserError(f"{source} does not exist. SOURCE must name a file or folder of annotations.")
    return source


def folder_for_scratch(out: Path) -> Path:
    """An existing folder on the disk where `out` will stand. Raises UserError where `out` cannot be made."""
    nearest = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UserError(f"{nearest} is no folder, and so {out} cannot be one. Use another path.")
    return out.parent if nearest == out else nearest


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises UserError where it holds other bytes."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save the file as UTF-8.") from None


def read_json(path: Path):
    """A JSON file. Raises UserError with line and column where it is torn."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str):
    """The value of a JSON text that stands at `where`. Raises UserError where it is torn."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}. The file is torn or of another format.") from None


def read_xml(path: Path, root: str, found: Source) -> ElementTree.Element | None:
    """The root of an XML file, if it has that name; else None, and an error of the source."""
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: encodings that expat lacks
        found.errors.append(f"{path}: not XML: {error}")
        return None
    if tree.tag != root:
        found.errors.append(f"{path} begins with <{tree.tag}>, and not with <{root}>")
        return None
    return tree


def number(text: str | None) -> int | float | str | None:
    """The number that a text spells; the text itself where it spells none."""
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text


def is_set(mark) -> bool:
    """Whether a mark such as iscrowd or difficult is set. Some tools write it as text, and the text "0" is not set."""
    return str(mark).strip().lower() in {"1", "1.0", "true", "yes"}


def stated_size(width, height) -> tuple[int, int] | None:
    """(width, height) where both are positive whole numbers; sources write 0 or nothing for "unknown"."""
    sides = [number(side) if isinstance(side, str) else side for side in (width, height)]
    whole = all(isinstance(side, int | float) and 0 < side < 1e9 and side == int(side) for side in sides)
    return (int(sides[0]), int(sides[1])) if whole else None


def safe_name(name: str) -> str:
    """A relative path with forward slashes that stays inside whatever folder it is put in."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in {"/", "//"}]
    return "/".join("__" if part == ".." else part for part in parts) or "_"


def relative_name(path: Path, folder: Path) -> str:
    """The path relative to a folder, made safe."""
    return safe_name(os.path.relpath(path, folder))


def suffix_of(content: bytes) -> str:
    """The file ending of an encoded picture; torn ones are reported with all other pictures."""
    from PIL import Image  # which -h can do without

    try:
        with Image.open(io.BytesIO(content)) as image:
            return _FORMAT_SUFFIXES.get(image.format, f".{image.format.lower()}")
    except (OSError, ValueError, LookupError, RuntimeError, EOFError):
        return ".bin"


def list_images(folder: Path, options: Options) -> list[Path]:
    """Every picture at any depth below a folder, in a stable order."""
    paths = (path for path in files_below(folder) if is_image(path))
    return sorted(path for path in paths if not is_output(path, options))


def is_output(path: Path, options: Options) -> bool:
    """Whether a path lies in an earlier data set at --out, which may stand inside SOURCE."""
    return Path(os.path.realpath(path)).is_relative_to(options.out)


class ImageFinder:
    """Finds the pictures that a source names, in folders that are tried in order."""

    def __init__(self, folders: list[Path], named_by_user: bool = False):
        """`named_by_user` says that the folders are the user's word, by which names with folders of their own give way."""
        self.folders = folders
        self.named_by_user = named_by_user
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path:
        """The named file; else the only picture of that stem, in any case; else a path that does not exist."""
        name = name.replace("\\", "/")
        tails = endings(name) if self.named_by_user or is_absolute(name) else [name]
        for tail in tails:
            for folder in self.folders:
                if os.path.isfile(folder / tail):
                    return folder / tail
        for tail in tails:
            for folder in self.folders:
                if match := self._match_stem(folder / tail):
                    return match
        return self.folders[0] / name

    def _match_stem(self, path: Path) -> Path | None:
        if path.parent not in self._by_stem:
            stems: dict[str, list[Path]] = {}
            for file in sorted(path.parent.iterdir()) if os.path.isdir(path.parent) else []:
                if file.suffix.lower() in IMAGE_SUFFIXES:
                    stems.setdefault(file.stem.lower(), []).append(file)
            self._by_stem[path.parent] = stems
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        matches = self._by_stem[path.parent].get(stem.lower(), [])
        return matches[0] if len(matches) == 1 else None


def is_absolute(name: str) -> bool:
    """Whether a path with forward slashes begins at a root or a drive: most often another machine's."""
    return re.match(r"/|[A-Za-z]:/", name) is not None


def endings(name: str) -> list[str]:
    """A path with forward slashes, and what is left of it without its first folder, its first two, and so on."""
    parts = name.split("/")
    return [name, *("/".join(parts[i:]) for i in range(1, len(parts)))]


def annotation_files(
    source: Path, patterns: list[str], options: Options
) -> tuple[list[tuple[Path, str | None]], list[str]]:
    """([(file, split)], warnings). SOURCE is one file, or a folder with one file for each split.

    The first pattern that matches, in the folder or one level below it, is taken.
    """
    if existing(source).is_file():
        return [(source, None)], []
    files: list[Path] = []
    for pattern in patterns:
        matches = sorted(source.glob(pattern)) + sorted(source.glob(f"*/{pattern}"))
        files = files or [file for file in matches if not is_output(file, options)]
    if not files:
        raise UserError(f"{source} holds no {patterns[-1]}, nor do the folders in it.")
    named = [(file, _split_of_file(file, source)) for file in files]
    if len(named) == 1:
        return named, []
    chosen = [(file, split) for file, split in named if split]
    if not chosen:
        names = ", ".join(str(file.relative_to(source)) for file in files[:5])
        raise UserError(f"{source} holds {len(files)} files of this kind, none named after a split: {names}. Pass one.")
    seen: dict[str, Path] = {}
    for file, split in chosen:
        if split in seen:
            raise UserError(f"{seen[split]} and {file} are both the {split} split. Pass one file as SOURCE.")
        seen[split] = file
    return chosen, [f"{file} is named after no split and left out" for file, split in named if not split]


def _split_of_file(file: Path, source: Path) -> str | None:
    return split_of(file.stem) or (split_of(file.parent.name) if file.parent != source else None)


def image_finder_for(file: Path, source: Path, options: Options, first: list[Path] | None = None) -> ImageFinder:
    """The pictures of one annotation file: in the folders `first`, then in those that bear the name of its split."""
    return ImageFinder([*(first or []), *_image_folders(file, source, options)], options.images is not None)


def _image_folders(file: Path, source: Path, options: Options) -> list[Path]:
    roots = [file.parent, source if source.is_dir() else file.parent]
    if file.parent.name.lower() in {"annotations", "labels"}:
        roots.append(file.parent.parent)
    if options.images:
        below = file.parent.relative_to(source) if source.is_dir() else ""
        roots = [options.images / below, options.images]
    split = split_of(file.stem) or split_of(file.parent.name)
    # CVAT calls the pictures' folder what stands behind `instances_`, whatever that is.
    words = [*re.findall(r"[a-z]+\d+", file.stem.lower()), *file.stem.split("_", 1)[1:], *ALIASES.get(split, ())]
    own = [root / folder for root in roots for word in words for folder in (word, f"images/{word}", f"{word}/images")]
    common = [root / folder for root in roots for folder in ("", "images", "JPEGImages")]
    return [folder for folder in dict.fromkeys(own + common) if folder.is_dir()]


def image_name(named: str, picture: Path, file: Path, source: Path) -> str:
    """An item's name: as the annotation names it; relative to SOURCE where annotation and picture share a subfolder."""
    if source.is_dir() and file.parent != source and picture.is_relative_to(file.parent):
        return relative_name(picture, source)
    return safe_name(str(PurePosixPath(named.replace("\\", "/")).parent / picture.name))
