"""Boxes of all images of a split at once, in flat arrays: which of them overlap, and which gets which."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Pairs that are looked at together; bounds the memory where images hold hundreds of boxes.
CHUNK = 1 << 20


@dataclass(frozen=True)
class FlatBoxes:
    """The boxes of many images, image by image. `image`, `label`: (N,) numbers; `boxes_xyxy`: (N, 4)."""

    image: np.ndarray
    label: np.ndarray
    boxes_xyxy: np.ndarray


def flatten(sources: list[dict], labels: dict[str, int]) -> FlatBoxes:
    """The boxes of records or of predictions. `labels` numbers the names; one that it lacks is −1."""
    objects = [source["objects"] for source in sources]
    return FlatBoxes(
        image=np.repeat(np.arange(len(objects)), [len(row["category"]) for row in objects]),
        label=np.array([labels.get(name.strip(), -1) for row in objects for name in row["category"]], dtype=np.int64),
        boxes_xyxy=np.array([box for row in objects for box in row["bbox"]], dtype=np.float64).reshape(-1, 4),
    )


def column_of(sources: list[dict], name: str, dtype) -> np.ndarray:
    """(N,) the values of one column of `objects`, in the order of `flatten`."""
    return np.array([value for source in sources for value in source["objects"][name]], dtype=dtype)


def overlaps(
    groups_a: np.ndarray, boxes_a_xyxy: np.ndarray, groups_b: np.ndarray, boxes_b_xyxy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns, shared areas) of all pairs of one group that share an area above 0, by row, then by column.

    `groups_a`: (N,), `groups_b`: (M,); boxes of different groups are never compared.
    """
    by_group = np.argsort(groups_b, kind="stable")
    first, last = (np.searchsorted(groups_b, groups_a, side, sorter=by_group) for side in ("left", "right"))
    counts = last - first
    cuts = np.searchsorted(np.cumsum(counts), np.arange(CHUNK, counts.sum(), CHUNK))
    parts = []
    for start, stop in pairwise([0, *cuts.tolist(), len(counts)]):
        chunk = counts[start:stop]
        rows = np.repeat(np.arange(start, stop), chunk)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        columns = by_group[np.repeat(first[start:stop], chunk) + nth]
        a, b = boxes_a_xyxy[rows], boxes_b_xyxy[columns]
        sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        area = sides[:, 0] * sides[:, 1]
        overlapping = (sides > 0).all(axis=1) & (area > 0)  # the product may be too small for a float
        parts.append((rows[overlapping], columns[overlapping], area[overlapping]))
    rows, columns, shared = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows, columns, shared


def assign(rows: np.ndarray, columns: np.ndarray, ranks: np.ndarray, open_to_all: np.ndarray) -> np.ndarray:
    """The pairs that are made where every row takes its first free choice: (K,) numbers of pairs, one a row at most.

    The pairs come by row, each row's in the order in which it wants them. Of several rows a column takes the one whose pair
    has the lowest of `ranks`, which may not be equal within a column; a column that is `open_to_all` (a bool for every pair)
    takes all. Every row asks its next choice as long as it is refused (Gale and Shapley 1962, "College admissions and the
    stability of marriage"); where the ranks order the rows, that equals letting one row after another choose.
    """
    at = np.flatnonzero(np.diff(rows, prepend=-1))  # the first choice of every row
    end = np.append(at[1:], len(rows))
    lowest = np.empty(columns.max(initial=-1) + 1, ranks.dtype)
    while True:
        lowest[columns[at]] = ranks[at]
        np.minimum.at(lowest, columns[at], ranks[at])
        refused = (ranks[at] > lowest[columns[at]]) & ~open_to_all[at]
        if not refused.any():
            return at
        at = at + refused
        asking = at < end
        at, end = at[asking], end[asking]
