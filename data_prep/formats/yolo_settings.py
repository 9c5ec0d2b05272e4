"""YOLO's data.yaml, or the file of class names in a folder without one."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boxtune.common.errors import UserError
from data_prep.reading.source import Sample
from data_prep.reading.text_files import read_text
from data_prep.reading.values import number

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
    for path in (*sample.of_kind(".yaml"), *sample.of_kind(".yml")):
        if sample.source in (path, path.parent) and re.search(r"^names\s*:", path.read_text("utf-8", "replace"), re.M):
            return path
    return None


def name_files(root: Path) -> list[Path]:
    """Where class names may be; LabelImg writes them into the folder of the labels."""
    return [folder / name for folder in (root, root / "labels") for name in NAME_FILES]


def read_settings(source: Path) -> Settings:
    """The settings of a source, which is data.yaml or a folder. Raises UserError if there are no class names."""
    path = _find_yaml(source)
    if path:
        values = _read_yaml(path)
        settings = Settings(path.parent, path, _names_of_yaml(path, values["names"]), values)
    else:
        settings = Settings(source, source, _names_of_text(source))
    if not settings.names:
        raise UserError(f"{settings.where} contains no class name.")
    return settings


def _find_yaml(source: Path) -> Path | None:
    if source.is_file():
        return source
    files = sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    preferred = [file for file in files if file.stem in {"data", "dataset"}]
    if len(files) > 1 and len(preferred) != 1:
        raise UserError(f"{source} contains several YAML files; pass one of them:", [str(file) for file in files])
    return next(iter(preferred or files), None)


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


def _names_of_text(root: Path) -> dict[int, str]:
    for path in name_files(root):
        if path.is_file():
            # A blank line between names counts, because labels count it; the empty name is reported later.
            return dict(enumerate(line.strip() for line in read_text(path).rstrip().splitlines()))
    raise UserError(
        f"{root} contains no class names. Add data.yaml with `names: [...]`, or classes.txt with one name per line."
    )
