"""The histograms and the table of pixel budgets on the page of `show`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from boxtune.data.boxes import box_area
from boxtune.data.records import Record
from boxtune.families.family import Family
from data_prep.tools.object_sizes import image_tokens, keeping_budget, scale_at, shorter_sides, too_small

# In addition to the page's own budget and the one that keeps 99 % of the objects.
_BUDGET_FACTORS = (0.25, 0.5, 2, 4)


def histograms(records: list[Record], family: Family, max_pixels: int) -> list[dict[str, Any]]:
    """The number of objects per image, and the sizes of images and objects."""
    counts = [len(record["objects"]["bbox"]) for record in records]
    longer_sides = [max(record["width"], record["height"]) for record in records]
    percentages = [
        100 * (area / (record["width"] * record["height"]))
        for record in records
        for area in box_area(record["objects"]["bbox"])
    ]
    sides, areas = shorter_sides(records)
    resized_sides = sides * scale_at(areas, max_pixels)
    return [
        _histogram("objects per image", counts, [0, 1, 2, 3, 4, 6, 9, 16, 31, 61], whole=True),
        _histogram("longer side of the image, px", longer_sides, [0, 256, 512, 768, 1024, 1536, 2048, 3072, 4096]),
        _histogram("area of an object, % of its image", percentages, [0, 0.1, 0.3, 1, 3, 10, 30, 60]),
        _histogram(
            "shorter side of an object after resizing, px",
            resized_sides,
            [0, 4, 8, family.patch_size, 28, 56, 112, 224, 448],
        ),
    ]


def _histogram(
    title: str, values: Sequence[float] | np.ndarray, edges: list[float], whole: bool = False
) -> dict[str, Any]:
    """A bar per interval: from each edge, inclusive, to the next, exclusive; the last is open. `whole`: values are ints."""
    counts = np.histogram(values, [*edges, np.inf])[0].tolist()
    names = []
    for low, high in pairwise(edges):
        names.append(f"{low:g}" if whole and high == low + 1 else f"{low:g} to {high - whole:g}")
    names.append(f"{edges[-1]:g} and more")
    largest = max(counts, default=0) or 1
    rows = [{"name": name, "count": n, "share": 100 * n / largest} for name, n in zip(names, counts, strict=True)]
    return {"title": title, "rows": rows}


def budget_rows(records: list[Record], family: Family, max_pixels: int) -> list[dict[str, Any]]:
    """Image tokens and too small objects at `max_pixels`, at lower and higher budgets, and at the one that keeps 99 %."""
    notes = {max_pixels: "this page's --max-pixels"}
    for factor in _BUDGET_FACTORS:
        notes.setdefault(round(max_pixels * factor), "")
    if keeping := keeping_budget(records, family):
        note = "keeps 99 % of the objects that are large enough in the original image"
        notes[keeping] = f"{note}, {notes[max_pixels]}" if keeping == max_pixels else note
    rows = []
    for budget in sorted(notes):
        tokens, small = image_tokens(records, family, budget), too_small(records, family, budget)
        rows.append(
            {
                "max_pixels": budget,
                "note": notes[budget],
                "median_tokens": round(float(np.median(tokens))) if len(tokens) else 0,
                "most_tokens": round(float(tokens.max())) if len(tokens) else 0,
                "small": int(small.sum()),
                "share": 100 * float(small.mean()) if len(small) else 0.0,
            }
        )
    return rows
