"""The box layouts that sources use, and the test for boxes that cannot be right in a given layout."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from boxtune.data.boxes import box_cxcywh_to_xyxy, box_xywh_to_xyxy, box_yxyx_to_xyxy

# {layout: conversion of (N, 4) boxes to xyxy}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xyxy": lambda boxes_xyxy: boxes_xyxy,
    "xywh": box_xywh_to_xyxy,
    "yxyx": box_yxyx_to_xyxy,
    "cxcywh": box_cxcywh_to_xyxy,
}
_COORDINATE_NAMES = {
    "xyxy": "x0 y0 x1 y1",
    "xywh": "x0 y0 width height",
    "yxyx": "y0 x0 y1 x1",
    "cxcywh": "cx cy width height",
}
# How the user can state the layout.
BBOX_FORMAT_OPTION = f"--bbox-format {{{','.join(LAYOUTS)}}}, with 1000 at its end for thousandths"
THOUSAND = 1000

# Rounding can push fractions slightly above 1.
MAX_FRACTION = 1.02
# A box is implausible if it reaches beyond the image by more than this fraction of the side.
_MARGIN = 0.02


class Convention(NamedTuple):
    """How a source writes boxes: `layout` is a key of LAYOUTS, `fractions` means 0 to `whole` (1, or 1000 for thousandths)
    instead of pixels."""

    layout: str
    fractions: bool
    whole: int = 1

    def __str__(self) -> str:
        unit = "thousandths" if self.whole == THOUSAND else "fractions"
        return f"{_COORDINATE_NAMES[self.layout]} in {f'{unit} of the image' if self.fractions else 'pixels'}"


def implausible(boxes_xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N,) bool: which of (N, 4) boxes are inverted or reach clearly beyond an image of `size` (width, height)."""
    sides = np.asarray(size, dtype=np.float64)
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    wrong = (high < low) | (low < -_MARGIN * sides) | (high > (1 + _MARGIN) * sides)  # (N, 2), per axis
    return wrong[:, 0] | wrong[:, 1]


def as_array(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, 4) float64 of boxes that hold four numbers each."""
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
