"""Guesses the box convention of a source from its boxes, if the source does not state it."""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from boxtune.common.errors import UserError
from data_prep.pipeline.inspect_images import Inspected
from data_prep.pipeline.layouts import (
    BBOX_FORMAT_OPTION,
    LAYOUTS,
    MAX_FRACTION,
    THOUSAND,
    Convention,
    as_array,
    implausible,
)
from data_prep.pipeline.orientation import annotated_size
from data_prep.reading.shapes import are_numbers
from data_prep.reading.source import Options, Source

# Nobody writes y first in pixels, but TensorFlow does in fractions. Fractions do not reveal an image's width and height, so
# such boxes are just as plausible with x first, and the user has to decide.
_PIXEL_LAYOUTS = ("xywh", "xyxy", "cxcywh")
_FRACTION_LAYOUTS = (*_PIXEL_LAYOUTS, "yxyx")
# For a source that neither states a layout nor has boxes.
_DEFAULT_LAYOUT = "xywh"
# A convention fits if at most this share of the boxes is implausible in it.
_MAX_IMPLAUSIBLE = 0.01


class _ImageBoxes(NamedTuple):
    """The boxes of four numbers of one image, and the (width, height) for which they are written."""

    name: str
    boxes: list[list[float]]
    size: tuple[int, int]


def find_convention(found: Source, images: Iterable[Inspected], options: Options) -> Convention:
    """The convention that the source or the user states. If neither does, the one that fits the boxes, which is printed.

    `images` can be iterated several times. Raises UserError with three examples if no layout fits, or several do.
    """
    if (
        found.fractions is not None
        and options.bbox_format
        and (options.bbox_format, True) != (found.layout, options.thousandths)
    ):
        raise UserError(
            f"--bbox-format {options.bbox_format}: the boxes of this source are {found.layout} by definition. Only their unit "
            f"can be stated: --bbox-format {found.layout}1000 for thousandths of the image."
        )
    if options.thousandths:
        return Convention(found.layout or _DEFAULT_LAYOUT, fractions=True, whole=THOUSAND)
    if found.fractions is not None:
        return Convention(found.layout or _DEFAULT_LAYOUT, found.fractions)
    fractions, total = _guess_fractions(images)
    unit = "fractions" if fractions else "pixels"
    if found.layout or not total:
        convention = Convention(found.layout or _DEFAULT_LAYOUT, fractions)
        print(f"boxes: read as {convention.layout} in {unit}", file=sys.stderr)
        return convention
    layouts = _FRACTION_LAYOUTS if fractions else _PIXEL_LAYOUTS
    misfits = _count_misfits(images, layouts, fractions)
    fitting = [layout for layout in layouts if misfits[layout] / total <= _MAX_IMPLAUSIBLE]
    counts = ", ".join(f"{layout} fits {total - count}" for layout, count in misfits.items())
    evidence = f"of {total} boxes in {unit}, {counts}"
    if len(fitting) != 1:
        raise _undecided(images, fitting, misfits, fractions, evidence)
    convention = Convention(fitting[0], fractions)
    print(f"boxes: read as {convention.layout}; {evidence} (override with --bbox-format)", file=sys.stderr)
    return convention


def _guess_fractions(images: Iterable[Inspected]) -> tuple[bool, int]:
    """(whether nearly all boxes lie between 0 and 1, the number of boxes)."""
    total = within = 0
    for _, boxes, _ in _image_boxes(images):
        total += len(boxes)
        within += sum(all(abs(value) <= MAX_FRACTION for value in box) for box in boxes)
    return bool(total) and within >= (1 - _MAX_IMPLAUSIBLE) * total, total


def _count_misfits(images: Iterable[Inspected], layouts: tuple[str, ...], fractions: bool) -> dict[str, int]:
    """{layout: how many boxes are implausible in it}."""
    misfits = dict.fromkeys(layouts, 0)
    for _, boxes, size in _image_boxes(images):
        for layout in layouts:
            misfits[layout] += int(_misfits(boxes, size, layout, fractions).sum())
    return misfits


def _misfits(boxes: list[list[float]], size: tuple[int, int], layout: str, fractions: bool) -> np.ndarray:
    return implausible(LAYOUTS[layout](as_array(boxes)), (1, 1) if fractions else size)


def _undecided(
    images: Iterable[Inspected], fitting: list[str], misfits: dict[str, int], fractions: bool, evidence: str
) -> UserError:
    """The error for several fitting layouts, with any boxes, or for none, with boxes that do not fit the best one."""
    best = min(misfits, key=misfits.__getitem__)
    examples = (
        f"{name} {size}: {[round(value, 4) for value in box]}"
        for name, boxes, size in _image_boxes(images)
        for box in boxes
        if fitting or _misfits([box], size, best, fractions)[0]
    )
    problem = "Several box formats fit" if fitting else "No box format fits"
    heading = "Examples:" if fitting else f"Boxes that are not {best}:"
    return UserError(f"{problem} ({evidence}). State it with {BBOX_FORMAT_OPTION}. {heading}", [*islice(examples, 3)])


def _image_boxes(images: Iterable[Inspected]) -> Iterator[_ImageBoxes]:
    """All images that have boxes of four numbers."""
    for image in images:
        if boxes := [row.box for row in image.item.rows if are_numbers(row.box, 4)]:
            yield _ImageBoxes(image.item.name, boxes, annotated_size(image.item, image.facts))
