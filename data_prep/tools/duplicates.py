"""Boxes and class names of a dataset that occur twice, exactly or nearly."""

import itertools
import re
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from boxtune.data.boxes import box_iou
from boxtune.data.records import Record

_DUPLICATE_IOU = 0.9


class DuplicateBox(NamedTuple):
    """Two nearly identical boxes of one class in the image `id`."""

    id: str
    category: str
    iou: float


def duplicate_boxes(records: list[Record]) -> list[DuplicateBox]:
    found = []
    for record in records:
        boxes_xyxy, labels = record["objects"]["bbox"], record["objects"]["category"]
        if len(boxes_xyxy) < 2:
            continue
        overlap = np.triu(box_iou(boxes_xyxy, boxes_xyxy), k=1)
        for i, j in np.argwhere(overlap >= _DUPLICATE_IOU):
            if labels[i] == labels[j]:
                found.append(DuplicateBox(record["id"], labels[i], float(overlap[i, j])))
    return found


def similar_names(classes: list[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ only in case, spacing, a plural's s, or by a likely typing error."""
    return [(a, b) for a, b in itertools.combinations(classes, 2) if _are_similar(a, b)]


def _are_similar(a: str, b: str) -> bool:
    a, b = (re.sub(r"[\s_-]+", "", name.casefold()) for name in (a, b))
    if a.rstrip("s") == b.rstrip("s"):
        return True
    # Names such as "part 1" and "part 2", or "grade A" and "grade B", differ on purpose.
    if a[:-1] == b[:-1] or re.sub(r"\d+", "", a) == re.sub(r"\d+", "", b):
        return False
    is_transposed = sorted(a) == sorted(b)
    return min(len(a), len(b)) >= 5 and (is_transposed or SequenceMatcher(None, a, b).ratio() >= 0.85)
