"""What was prepared, as tables on the terminal."""

from collections import Counter
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxtune.boxes import box_area
from boxtune.records import Record, split_summary

# COCO's bounds between small, medium and large objects, in square pixels.
_SMALL, _MEDIUM = 32**2, 96**2


def print_report(out: Path, classes: list[str], splits: dict[str, list[Record]], problems: list[dict]) -> None:
    console = Console(highlight=False)
    console.print(_images_table(splits))
    console.print(_classes_table(classes, splits))
    console.print(f"box sizes: {_sizes([record for records in splits.values() for record in records])}", soft_wrap=True)
    kinds = Counter(problem["kind"] for problem in problems)
    counted = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    console.print(f"problems: {counted}; each is in problems.jsonl" if counted else "problems: none", soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _images_table(splits: dict[str, list[Record]]) -> Table:
    table = Table("split", title="images", title_justify="left")
    for column in ("images", "empty", "objects", "ignored"):
        table.add_column(column, justify="right")
    for split, records in splits.items():
        counts = split_summary(records)
        ignored = sum(sum(record["objects"]["ignore"]) for record in records)
        table.add_row(split, *(str(n) for n in (counts["images"], counts["empty"], counts["objects"], ignored)))
    return table


def _classes_table(classes: list[str], splits: dict[str, list[Record]]) -> Table:
    table = Table("class", title="objects", title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    counts = {
        split: Counter(name for record in records for name in record["objects"]["category"])
        for split, records in splits.items()
    }
    for name in classes:
        table.add_row(escape(name), *(str(counts[split][name]) for split in splits))
    return table


def _sizes(records: list[Record]) -> str:
    areas, shares = [], []
    for record in records:
        own = box_area(record["objects"]["bbox"]).tolist()
        areas += own
        shares += [area / (record["width"] * record["height"]) for area in own]
    if not areas:
        return "no box"
    small, large = sum(area < _SMALL for area in areas), sum(area > _MEDIUM for area in areas)
    return (
        f"small {small}, medium {len(areas) - small - large}, large {large}; the median box covers {median(shares):.2%} "
        "of its picture"
    )
