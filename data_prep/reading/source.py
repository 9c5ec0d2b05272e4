"""What a reader is handed, and what it hands to the common pipeline: pictures and their objects in the source's own words."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.reading.spool import Spool


@dataclass
class Row:
    """One object. `box` is as the source wrote it, in the layout that `Source.layout` names; it may hold anything."""

    box: list
    category: str
    ignore: bool = False
    extra: dict = field(default_factory=dict)


@dataclass
class Item:
    """One picture. `name` is its source-relative path with extension, `picture` the path of its file as text, `size` the
    (width, height) that the source states, `no_box` what stands for each object that encloses nothing, as a point does."""

    name: str
    picture: str
    rows: list[Row]
    split: str | None = None
    size: tuple[int, int] | None = None
    extra: dict = field(default_factory=dict)
    no_box: list = field(default_factory=list)


@dataclass(slots=True)
class Entry:
    """What of an item must be in memory to be compared with all others. `number` is its place in Source.items."""

    number: int
    name: str
    picture: str
    split: str | None


@dataclass
class Source:
    """A source as it was read. `items` lie on the disk, for there may be any number of them.

    `layout` is a key of placing.LAYOUTS; `fractions` says that boxes run from 0 to 1.

    `errors` stop the run, together with those of the pictures; `warnings` are printed; `problems` go to problems.jsonl.
    `classes` is in the source's order, empty where it states none. Where `fractions` is None, the boxes will tell, and
    the `layout` too where that is None.
    """

    items: Spool[Item]
    layout: str | None
    fractions: bool | None = False
    classes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[dict] = field(default_factory=list)


@dataclass
class Options:
    """What the user asked for. `scratch` is a temporary folder on the disk of `out`, for what memory need not hold; pictures
    that a reader has to write go there, and from there into the data set."""

    out: Path
    scratch: Path
    images: Path | None = None
    classes: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)
    default_class: str = ""
    image_field: str | None = None
    bbox_field: str | None = None
    label_field: str | None = None
    bbox_format: str | None = None
    split_ratio: list[float] | None = None
    questions: str = "all"
    workers: int = 1
    copy_images: bool = False
    skip_bad_images: bool = False
    allow_bad_boxes: bool = False
    overwrite: bool = False


@dataclass
class Sample:
    """What a format may recognise a source by: its files, and the content or head of a few of each kind."""

    source: Path
    files: list[Path] = field(default_factory=list)
    documents: list[tuple[Path, object]] = field(default_factory=list)  # of .json files
    xml_roots: list[tuple[Path, str | None]] = field(default_factory=list)
    csv_heads: list[tuple[Path, list[str]]] = field(default_factory=list)

    def of_kind(self, suffix: str) -> list[Path]:
        return [path for path in self.files if path.suffix.lower() == suffix]

    def describe(self) -> str:
        """How many files there are of each kind."""
        kinds = Counter(path.suffix.lower() or path.name for path in self.files)
        return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)) or "it is empty"


def problem(item_id: str, kind: str, value, action: str) -> dict:
    """A line of problems.jsonl: an object or image that was changed or dropped."""
    return {"id": item_id, "kind": kind, "value": plain(value), "action": action}


def plain(value):
    """The value as JSON can hold it: NaN and infinities, dates and the like become text."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
