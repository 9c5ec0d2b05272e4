"""YOLO's data.yaml, or the file of class names in a folder without one."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boxtune.common.errors import UserError
from data_prep.reading.annotation_files import source_files
from data_prep.reading.source import Options, Sample
from data_prep.reading.text_files import read_text
from data_prep.reading.values import number

_HAS_NAMES = re.compile(r"^names\s*:", re.M)
NAME_FILES = ("classes.txt", "obj.names", "labels.txt")


@dataclass(frozen=True)
class Settings:
    """What data.yaml says. `root` is its folder, `names` is {class number: name} in the order of the numbers, and `values`
    are all its keys. `where` is data.yaml in messages. Without data.yaml, `where` is `root` and there are no values."""

    root: Path
    where: Path
    names: dict[int, str]
    values: dict[str, Any] = field(default_factory=dict)


def yaml_with_names(sample: Sample) -> Path | None:
    """The YAML file of a source that has class names, or None."""
    return next((path for path in sample.files if _is_yaml(path) and _has_names(path)), None)


def files_with_names(files: list[Path]) -> list[Path]:
    """The files of class names among `files`."""
    return [path for path in files if path.name in NAME_FILES]


def read_settings(source: Path, options: Options) -> Settings:
    """The settings of a source, which is data.yaml or a folder, at any depth. Raises UserError if there are no class names."""
    files = [source] if source.is_file() else source_files(source, options)
    path = source if source.is_file() else _find_yaml(source, files)
    if path:
        values = _read_yaml(path)
        settings = Settings(path.parent, path, _names_of_yaml(path, values["names"]), values)
    else:
        root, names = _names_of_text(source, files_with_names(files))
        settings = Settings(root, root, names)
    if not settings.names:
        raise UserError(f"{settings.where} contains no class name.")
    return settings


def _is_yaml(path: Path) -> bool:
    return path.suffix.lower() in {".yaml", ".yml"}


def _has_names(path: Path) -> bool:
    return path.is_file() and _HAS_NAMES.search(path.read_text("utf-8", "replace")) is not None


def _find_yaml(source: Path, files: list[Path]) -> Path | None:
    """The YAML file in SOURCE; else the one with class names that is nearest to it."""
    near = [path for path in files if path.parent == source and _is_yaml(path)]
    if not near:
        deeper = [path for path in files if _is_yaml(path) and _has_names(path)]
        near = [path for path in deeper if len(path.parts) == len(deeper[0].parts)]
    preferred = [path for path in near if path.stem in {"data", "dataset"}]
    if len(near) > 1 and len(preferred) != 1:
        raise UserError(f"{source} contains several YAML files; pass one of them:", [str(path) for path in near])
    return next(iter(preferred or near), None)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        # BaseLoader keeps every value as text: a class called `no` or `1.0` must not become a boolean or a number.
        values = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("names"), list | dict):
        raise UserError(f"{path}: needs `names`, a list of class names or a mapping from numbers to names.")
    return values


def _names_of_yaml(path: Path, names: list[Any] | dict[str, Any]) -> dict[int, str]:
    entries = list(names.items() if isinstance(names, dict) else enumerate(names))
    by_number = []
    for key, name in entries:
        class_number = number(key) if isinstance(key, str) else key
        if not isinstance(class_number, int) or not isinstance(name, str):
            raise UserError(f"{path}: `names` must map whole numbers to class names; check the entry {key!r}.")
        by_number.append((class_number, name.strip()))
    return dict(sorted(by_number))


def _names_of_text(source: Path, files: list[Path]) -> tuple[Path, dict[int, str]]:
    """(the folder of the dataset, the names in the nearest file of class names). Files that are equally near must agree, such
    as those that LabelImg writes into each folder of labels."""
    if not files:
        raise UserError(
            f"{source} contains no class names. Add data.yaml with `names: [...]`, or classes.txt with one name per line."
        )
    of_folder: dict[Path, Path] = {}
    for path in sorted(files, key=lambda path: NAME_FILES.index(path.name)):
        of_folder.setdefault(path.parent, path)
    roots = {folder: folder.parent if folder.name == "labels" and folder != source else folder for folder in of_folder}
    nearest = min(len(root.parts) for root in roots.values())
    chosen = sorted(folder for folder, root in roots.items() if len(root.parts) == nearest)
    # A blank line between names counts, because labels count it; the empty name is reported later.
    texts = {folder: [line.strip() for line in read_text(of_folder[folder]).rstrip().splitlines()] for folder in chosen}
    first = texts[chosen[0]]
    if any(names != first for names in texts.values()):
        raise UserError(
            f"{source} contains several files of class names that differ; pass the folder of one of them:",
            [str(of_folder[folder]) for folder in chosen],
        )
    common = Path(os.path.commonpath([roots[folder] for folder in chosen]))
    return (common.parent if common.name == "labels" and common != source else common), dict(enumerate(first))
