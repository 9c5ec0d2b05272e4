"""The types that readers and the pipeline share: what a reader is given, and the images and objects it returns."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.reading.spool import Spool


@dataclass
class Row:
    """One annotated object. `box` holds the values of the source, in the layout that `Source.layout` names. They are not
    checked yet and can be anything. `extra` holds further attributes. `every_class`: the region may hold objects of any class
    that are not annotated, so it becomes an ignored object of each class, and `category` does not matter."""

    box: list[Any]
    category: str
    ignore: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    every_class: bool = False


def ignored_region(box: list[Any]) -> Row:
    """A region in which nothing counts, neither for nor against."""
    return Row(box, "", ignore=True, every_class=True)


@dataclass
class Item:
    """One annotated image. `name` is its path relative to the source, with extension; `image_path` is the path of its file.

    `size` is the (width, height) that the source states, in pixels. `no_box` lists annotations that have no box, such as
    points. `extra` holds further attributes of the image.
    """

    name: str
    image_path: str
    rows: list[Row]
    split: str | None = None
    size: tuple[int, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    no_box: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Entry:
    """The part of an item that is kept in memory to compare all items. `number` is the item's index in Source.items."""

    number: int
    name: str
    image_path: str
    split: str | None


@dataclass(frozen=True)
class Unreadable:
    """The result of reading something that cannot be read, with the reason."""

    reason: str


@dataclass
class Source:
    """Everything that was read from a source. `items` is kept on disk, because there can be any number of them.

    `layout` is a key of LAYOUTS in pipeline/layouts.py. `fractions`: boxes are in fractions of the image's size, 0 to 1. If
    `fractions` is None, the pipeline infers it from the boxes, and also `layout` if that is None.

    `folder` is the folder of the annotations relative to SOURCE, "" or with a slash at its end: it is not part of what the
    splits are drawn by. `classes` has the source's order and is empty if the source lists none. `errors` abort the run,
    together with those of the images. `warnings` are printed. `problems` are written to problems.jsonl.
    """

    items: Spool[Item]
    layout: str | None
    fractions: bool | None = False
    folder: str = ""
    classes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Options:
    """The options of the command. `scratch` is a temporary folder on the same disk as `out`. Readers write images there that
    the source holds as bytes; the pipeline moves them into the dataset."""

    out: Path
    scratch: Path
    images: Path | None = None
    classes: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    default_class: str = ""
    image_field: str | None = None
    bbox_field: str | None = None
    label_field: str | None = None
    bbox_format: str | None = None
    thousandths: bool = False
    split_ratio: list[float] | None = None
    questions: str = "all"
    workers: int = 1
    copy_images: bool = False
    skip_bad_images: bool = False
    allow_bad_boxes: bool = False
    overwrite: bool = False


@dataclass
class Sample:
    """What the formats see when they recognise a source: its files, and the content or first line of a few of each kind."""

    source: Path
    files: list[Path] = field(default_factory=list)  # the first of each kind in each folder
    kinds: Counter[str] = field(default_factory=Counter)  # the number of files of each kind, of all folders
    documents: list[tuple[Path, object]] = field(default_factory=list)  # values of .json files
    xml_roots: list[tuple[Path, str | None]] = field(default_factory=list)  # root tags of .xml files
    csv_heads: list[tuple[Path, list[str]]] = field(default_factory=list)  # cells of the first row of .csv files
    corrupt: list[str] = field(default_factory=list)  # files of which nothing can be read, with the reason
    faults: list[str] = field(default_factory=list)  # why files cannot be read that may be the annotations

    def of_kind(self, suffix: str) -> list[Path]:
        """The files with a suffix, which is given in lower case."""
        return [path for path in self.files if path.suffix.lower() == suffix]

    def first_of_folders(self, suffix: str, count: int) -> list[Path]:
        """The first `count` files with a suffix in each folder."""
        by_folder: dict[Path, list[Path]] = {}
        for path in self.of_kind(suffix):
            by_folder.setdefault(path.parent, []).append(path)
        return [path for paths in by_folder.values() for path in paths[:count]]

    def describe(self) -> str:
        """The number of files of each kind, in words."""
        return ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common(6))


def problem(item_id: str, kind: str, value: object, action: str) -> dict[str, Any]:
    """A line of problems.jsonl: an object or image that was changed or dropped."""
    return {"id": item_id, "kind": kind, "value": plain(value), "action": action}


def plain(value: object) -> Any:
    """The value in a form that JSON can hold: NaN, infinities, dates and so on become text."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
