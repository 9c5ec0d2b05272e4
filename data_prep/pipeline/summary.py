"""A summary of a prepared dataset, as tables on the terminal."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxtune.data.boxes import COCO_SIZE_LIMITS, COCO_SIZES, box_area
from boxtune.data.records import Record


@dataclass
class _SplitCounts:
    """The figures of one split. Per object: `areas` in square pixels, and `shares`, the fraction of the image it covers."""

    images: int = 0
    empty: int = 0
    ignored: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    areas: "array[float]" = field(default_factory=lambda: array("d"))
    shares: "array[float]" = field(default_factory=lambda: array("d"))

    def add(self, record: Record) -> None:
        objects = record["objects"]
        self.images += 1
        self.empty += not objects["bbox"]
        self.ignored += sum(objects["ignore"])
        self.objects.update(objects["category"])
        areas = box_area(objects["bbox"])
        self.areas.extend(areas)
        self.shares.extend(areas / (record["width"] * record["height"]))


def print_summary(
    out: Path,
    classes: list[str],
    splits: Mapping[str, Iterable[Record]],
    problems: Iterable[dict[str, Any]],
    further: Iterable[str] = (),
) -> None:
    """Print images and objects per split, objects per class, box sizes, the `further` lines, and how many problems there are
    of each kind."""
    counts = {split: _SplitCounts() for split in splits}
    for split, records in splits.items():
        for record in records:
            counts[split].add(record)
    console = Console(highlight=False)
    console.print(_images_table(counts))
    console.print(_classes_table(classes, counts))
    console.print(f"box sizes: {_box_sizes([*counts.values()])}", soft_wrap=True)
    for line in further:
        console.print(line, soft_wrap=True)
    console.print(f"problems: {_problem_kinds(problems)}", soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _images_table(splits: dict[str, _SplitCounts]) -> Table:
    table = Table("split", title="images", title_justify="left")
    for column in ("images", "empty", "objects", "ignored"):
        table.add_column(column, justify="right")
    for name, split in splits.items():
        figures = (split.images, split.empty, split.objects.total(), split.ignored)
        table.add_row(name, *map(str, figures))
    return table


def _classes_table(classes: list[str], splits: dict[str, _SplitCounts]) -> Table:
    table = Table("class", title="objects", title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    for name in classes:
        table.add_row(escape(name), *(str(split.objects[name]) for split in splits.values()))
    return table


def _box_sizes(splits: list[_SplitCounts]) -> str:
    areas = np.concatenate([split.areas for split in splits])
    shares = np.concatenate([split.shares for split in splits])
    if not len(areas):
        return "no boxes"
    counts = np.bincount(np.digitize(areas, COCO_SIZE_LIMITS), minlength=len(COCO_SIZES))
    listed = ", ".join(f"{size} {count}" for size, count in zip(COCO_SIZES, counts, strict=True))
    return f"{listed}; the median box covers {np.median(shares):.2%} of its image"


def _problem_kinds(problems: Iterable[dict[str, Any]]) -> str:
    kinds = Counter(entry["kind"] for entry in problems)
    if not kinds:
        return "none"
    listed = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    return f"{listed}; see problems.jsonl"
