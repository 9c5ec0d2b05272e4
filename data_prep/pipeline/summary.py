"""What was prepared, as tables on the terminal."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxtune.data.boxes import COCO_SIZE_LIMITS, COCO_SIZES, box_area
from boxtune.data.records import Record


@dataclass
class _Split:
    """What is reported of one split; `areas` in square pixels, `shares` of the picture, one for each object."""

    images: int = 0
    empty: int = 0
    ignored: int = 0
    objects: Counter = field(default_factory=Counter)
    areas: array = field(default_factory=lambda: array("d"))
    shares: array = field(default_factory=lambda: array("d"))

    def add(self, record: Record) -> None:
        objects = record["objects"]
        self.images += 1
        self.empty += not objects["bbox"]
        self.ignored += sum(objects["ignore"])
        self.objects.update(objects["category"])
        areas = box_area(objects["bbox"])
        self.areas.extend(areas)
        self.shares.extend(areas / (record["width"] * record["height"]))


def print_report(out: Path, classes: list[str], splits: dict[str, Iterable[Record]], problems: Iterable[dict]) -> None:
    counted = {split: _Split() for split in splits}
    for split, records in splits.items():
        for record in records:
            counted[split].add(record)
    kinds = Counter(problem["kind"] for problem in problems)
    listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    console = Console(highlight=False)
    console.print(_images_table(counted))
    console.print(_classes_table(classes, counted))
    console.print(f"box sizes: {_sizes([*counted.values()])}", soft_wrap=True)
    console.print(f"problems: {listed}; each is in problems.jsonl" if listed else "problems: none", soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _images_table(splits: dict[str, _Split]) -> Table:
    table = Table("split", title="images", title_justify="left")
    for column in ("images", "empty", "objects", "ignored"):
        table.add_column(column, justify="right")
    for name, split in splits.items():
        table.add_row(name, *(str(n) for n in (split.images, split.empty, split.objects.total(), split.ignored)))
    return table


def _classes_table(classes: list[str], splits: dict[str, _Split]) -> Table:
    table = Table("class", title="objects", title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    for name in classes:
        table.add_row(escape(name), *(str(split.objects[name]) for split in splits.values()))
    return table


def _sizes(splits: list[_Split]) -> str:
    areas, shares = (np.concatenate(parts) for parts in ([s.areas for s in splits], [s.shares for s in splits]))
    if not len(areas):
        return "no box"
    counts = np.bincount(np.digitize(areas, COCO_SIZE_LIMITS), minlength=len(COCO_SIZES))
    listed = ", ".join(f"{size} {count}" for size, count in zip(COCO_SIZES, counts, strict=True))
    return f"{listed}; the median box covers {np.median(shares):.2%} of its picture"
