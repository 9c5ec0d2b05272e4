"""YOLO: one text file of rows for each picture, class names in data.yaml (or classes.txt).

A row is `class cx cy w h` in fractions of the picture, with a confidence after it or not, or
`class x y x y x y …`, a polygon, of which the bounding box is taken; where data.yaml has
`kpt_shape`, a box and key points, which are left out. A picture without a label file is an
empty image.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import yaml

from boxtune.common.errors import UserError
from boxtune.common.files import files_below, is_image
from data_prep.reading.files import (
    ImageFinder,
    endings,
    existing,
    is_absolute,
    is_output,
    list_images,
    number,
    read_text,
    relative_name,
)
from data_prep.reading.names import ALIASES, split_of, split_of_folders
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
# How YAML writes that a split has no pictures.
_NOTHING = ("", "null", "~")
# Where detectors of this format write what they find, and pictures of it; YOLOv5 calls its runs exp, exp2 and so on.
_RUN = re.compile(r"(^|/)runs/(detect|segment|pose|obb|(train|val)/exp\d*)/")


def recognise(sample: Sample) -> str | None:
    for path in (*sample.of_kind(".yaml"), *sample.of_kind(".yml")):
        if sample.source in (path, path.parent) and re.search(r"^names\s*:", path.read_text("utf-8", "replace"), re.M):
            return f"{path} has names"
    labels = [path for path in sample.of_kind(".txt") if path.name not in _NAME_FILES]
    places = _name_files(sample.source)
    named = [path for path in sample.files if path in places]
    if named and labels:
        return f"{named[0]} names classes, and {labels[0]} may be of a picture"
    stems = {path.stem for path in sample.files if is_image(path)}
    rows = (path for path in labels if path.stem in stems and _holds_rows(path))
    return next((f"{path} begins with a row of numbers, and there is a picture of that name" for path in rows), None)


def read(source: Path, options: Options) -> Source:
    settings_file, root = _find_settings(existing(source))
    settings = _read_yaml(settings_file) if settings_file else {}
    names = _read_names(settings, settings_file, root)
    if not names:
        raise UserError(f"{settings_file or root}: there is no class name.")
    found = Source(Spool(options.scratch), layout="cxcywh", fractions=True, classes=list(names.values()))
    if settings_file and "nc" in settings and number(settings["nc"]) != len(names):
        found.warnings.append(f"{settings_file}: nc is {settings['nc']}, but names has {len(names)}")
    pictures, label_folders = _find_images(settings, settings_file, root, options, found)
    if not pictures:
        reasons = "; ".join(found.errors + found.warnings) or "Name their folder with --images."
        raise UserError(f"{settings_file or root}: found no picture. {reasons}")
    used: dict[str, Path] = {}  # the picture of each label file
    members: dict[str | None, list[Path]] = defaultdict(list)  # pictures of each split
    labelled: set[str | None] = set()  # splits with a label file
    read_box = _box_before_points if "kpt_shape" in settings else _box_cxcywh
    for picture, split in pictures:
        name = relative_name(picture, options.images or root)
        part = split or split_of_folders(name)
        members[part].append(picture)
        labels = _label_file(picture, root, options)
        if labels and used.setdefault(str(labels), picture) != picture:
            found.errors.append(f"{labels} would be the labels of both {used[str(labels)]} and {picture}")
        rows = _read_labels(labels, names, read_box, found) if labels else []
        labelled |= {part} if labels else set()
        found.items.append(Item(name, str(picture), rows, split))
    if not used and not any(picture.is_file() for picture, _ in pictures):
        raise UserError(
            f"{settings_file or root}: none of {len(pictures)} pictures is there; name their folder with --images. Looked for",
            [str(picture) for picture, _ in pictures[:5]],
        )
    if not used:
        example = _label_candidates(pictures[0][0], root, options)
        raise UserError(
            f"{root}: none of the {len(pictures)} pictures has a label file; looked for",
            [str(path) for path in example],
        )
    for split in [split for split in members if split not in labelled]:
        paths = members[split]
        places = ", ".join(str(path) for path in _label_candidates(paths[0], root, options))
        which = f"the {split} split" if split else "no split"
        found.warnings.append(
            f"none of the {len(paths)} pictures of {which} has a label file, so all count as empty; looked for {places}"
        )
    _add_orphans(label_folders, used, names, read_box, root, options, found)
    return found


def _add_orphans(
    label_folders: dict[Path, str | None],
    used: Iterable[str],
    names: dict[int, str],
    read_box: Callable[[list], list],
    root: Path,
    options: Options,
    found: Source,
) -> None:
    """Label files whose picture is missing, as items, so that it is reported with all other missing pictures."""
    predictions, folder = [], options.images or root
    for path, split in _orphans(label_folders, used, root, options):
        below = os.path.relpath(path.with_suffix(""), root)
        if _RUN.search(below):
            predictions.append(path)
            continue
        picture = folder / re.sub(r"\blabels\b", "." if options.images else "images", below, count=1)
        rows = _read_labels(path, names, read_box, found)
        found.items.append(Item(relative_name(picture, folder), str(picture), rows, split))
    _warn_of_runs("label file", predictions, found)


def _find_settings(source: Path) -> tuple[Path | None, Path]:
    """(data.yaml or None, the folder that paths are relative to)."""
    if source.is_file():
        return source, source.parent
    files = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    preferred = [file for file in files if file.stem in {"data", "dataset"}]
    if len(files) > 1 and len(preferred) != 1:
        raise UserError(f"{source} holds several YAML files; pass one of them:", [str(file) for file in files])
    return next(iter(preferred or files), None), source


def _read_yaml(path: Path) -> dict:
    try:
        # Every value as the text that stands there: a class called `no` or `1.0` is no truth value and no number.
        settings = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("names"), list | dict):
        raise UserError(f"{path}: needs `names`, a list of class names or a mapping from number to name.")
    return settings


def _read_names(settings: dict, settings_file: Path | None, root: Path) -> dict[int, str]:
    """{class number: name} in the order of the numbers."""
    if settings_file:
        names = settings["names"]
        pairs = list(names.items() if isinstance(names, dict) else enumerate(names))
        if bad := [key for key, name in pairs if not isinstance(number(key), int) or not isinstance(name, str)]:
            raise UserError(f"{settings_file}: `names` must map whole numbers to class names; look at {bad[0]!r}.")
        return dict(sorted((number(key), name.strip()) for key, name in pairs))
    for path in _name_files(root):
        if path.is_file():
            # A blank line between names counts, for the labels count it; the nameless class is reported.
            return dict(enumerate(line.strip() for line in read_text(path).rstrip().splitlines()))
    raise UserError(f"{root} names no classes. Add data.yaml with `names: [...]`, or classes.txt with one name a line.")


def _name_files(root: Path) -> list[Path]:
    """Where class names may stand; LabelImg writes them among the labels."""
    return [folder / name for folder in (root, root / "labels") for name in _NAME_FILES]


def _find_images(
    settings: dict, settings_file: Path | None, root: Path, options: Options, found: Source
) -> tuple[list[tuple[Path, str | None]], dict[Path, str | None]]:
    """([(picture, split)], {label folder: split}). The split is None where data.yaml names none."""
    declared = [
        (word, settings[word]) for words in ALIASES.values() for word in words if settings.get(word, "") not in _NOTHING
    ]
    if not declared:
        folder = options.images or root
        listed = list_images(folder, options)
        drawn = [path for path in listed if _RUN.search(os.path.relpath(path, folder))]
        _warn_of_runs("picture", drawn, found)
        own = sorted({*listed} - {*drawn})
        return [(path, None) for path in own], dict.fromkeys([*map(_label_folder, own), root])
    pictures: dict[tuple[Path, str | None], None] = {}
    label_folders: dict[Path, str | None] = {}
    listed_as: dict[Path, str] = {}
    for word, value in declared:
        split = split_of(word)
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, str):
                found.errors.append(f"{settings_file}: {word} must be a path or a list of paths")
                continue
            place = _resolve(entry, settings, settings_file, options)
            if place is None:
                wanted = os.path.abspath(settings_file.parent / str(settings.get("path") or "") / entry)
                trained = ": pictures of the other splits will be trained on" if split == "train" else ""
                found.warnings.append(
                    f"{settings_file} names {word}: {entry}, which is absent{trained}. If that is not meant, correct the path; "
                    f"there is no {wanted}"
                )
            elif place.is_dir():
                listed = list_images(place, options)
                if not listed:
                    found.warnings.append(f"{settings_file} names {word}: {entry}, which holds no picture")
                label_folders[_label_folder(place / "any")] = split
                pictures.update(((path, split), None) for path in listed)
                label_folders.update((folder, split) for folder in {_label_folder(path) for path in listed})
            else:
                folders = [settings_file.parent, place.parent, *([options.images] if options.images else [])]
                own = _read_list(place, ImageFinder(folders, options.images is not None), listed_as, found)
                pictures.update(((path, split), None) for path in own)
    return list(pictures), label_folders


def _resolve(entry: str, settings: dict, settings_file: Path, options: Options) -> Path | None:
    """A path of data.yaml: below its `path` or beside the file, then without the ../ that Roboflow writes, or what is left
    of another machine's path."""
    base = settings_file.parent / str(settings.get("path") or "")
    roots = [base, settings_file.parent, *([options.images] if options.images else [])]
    spellings = [entry, re.sub(r"^(\.\./)+", "", entry), *(endings(entry)[1:] if is_absolute(entry) else [])]
    candidates = [root / spelling for spelling in spellings for root in roots]
    return next((Path(os.path.abspath(path)) for path in candidates if os.path.exists(path)), None)


def _read_list(path: Path, pictures: ImageFinder, listed_as: dict[Path, str], found: Source) -> list[Path]:
    """The pictures that a text file lists. `listed_as` holds by what name each stands in the lists so far."""
    places = []
    for line in filter(str.strip, read_text(path).splitlines()):
        name = os.path.normpath(line.strip().replace("\\", "/"))
        # CVAT writes `data/` before names that hold good without it.
        both = [pictures.find(spelling) for spelling in (name, name.removeprefix("data/"))]
        place = next((place for place in both if os.path.isfile(place)), both[0])
        if place in [folder / name for folder in pictures.folders]:
            name = os.path.abspath(place)  # the whole name is that file's, however it is spelled
        place = Path(os.path.abspath(place))
        if listed_as.setdefault(place, name) != name:
            found.errors.append(f"{path}: {listed_as[place]} and {name} would both be {place}, and there is no other")
        places.append(place)
    return places


def _warn_of_runs(what: str, paths: list[Path], found: Source) -> None:
    if paths:
        found.warnings.append(f"{len(paths)} {what}(s) are of a detector's runs and are left out, such as {paths[0]}")


def _label_folder(picture: Path) -> Path:
    """Where the labels of a picture's folder lie: its last part `images` read as `labels`."""
    parts = list(picture.parent.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            return Path(*parts[:i], "labels", *parts[i + 1 :])
    return picture.parent


def _label_candidates(picture: Path, root: Path, options: Options) -> list[Path]:
    name = picture.stem + ".txt"
    places = [_label_folder(picture) / name, picture.with_suffix(".txt"), picture.parent / "labels" / name]
    if options.images:
        below = os.path.relpath(picture.with_suffix(".txt"), options.images)
        places += [root / below, root / "labels" / below, root / name, root / "labels" / name]
    return list(dict.fromkeys(places))


def _label_file(picture: Path, root: Path, options: Options) -> Path | None:
    return next((path for path in _label_candidates(picture, root, options) if path.is_file()), None)


def _read_labels(path: Path, names: dict[int, str], read_box: Callable[[list], list], found: Source) -> list[Row]:
    rows = []
    for line_number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        first, *values = [number(token) for token in line.split()]
        if not isinstance(first, int | float) or first not in names:
            found.errors.append(
                f"{path}:{line_number}: class {first!r}, but the names run from {min(names)} to {max(names)}"
            )
        else:
            rows.append(Row(read_box(values), names[int(first)]))
    return rows


def _box_before_points(values: list) -> list:
    """A pose row's box, which comes before its key points."""
    return values[:4]


def _box_cxcywh(values: list) -> list:
    """A row's numbers as a box; numbers that are no box are handed on as they are."""
    if len(values) == 5:
        return values[:4]
    if len(values) < 6 or len(values) % 2 or not all(isinstance(value, int | float) for value in values):
        return values
    x0, x1, y0, y1 = min(values[::2]), max(values[::2]), min(values[1::2]), max(values[1::2])
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


def _orphans(
    label_folders: dict[Path, str | None], used: Iterable[str], root: Path, options: Options
) -> Iterator[tuple[Path, str | None]]:
    """(label file, split) of those whose picture is missing. Beside pictures only a text of rows is taken for one."""
    seen = {*used}
    for folder, split in label_folders.items():
        own = "labels" in Path(os.path.relpath(folder, root)).parts
        for path in files_below(folder) if folder.is_dir() else []:
            if path.suffix != ".txt" or path.name in _NAME_FILES or str(path) in seen or is_output(path, options):
                continue
            seen.add(str(path))
            if own or _holds_rows(path):
                yield path, split


def _holds_rows(path: Path) -> bool:
    first = path.read_text(encoding="utf-8", errors="replace").strip().partition("\n")[0].split()
    return len(first) >= 5 and all(isinstance(number(token), int | float) for token in first)
