"""Source boxes → xyxy pixels of the upright picture: conversion, rotation, clipping, and the check for a wrong convention."""

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from boxtune.common.errors import UserError
from boxtune.data.boxes import box_cxcywh_to_xyxy, box_xywh_to_xyxy, box_yxyx_to_xyxy
from boxtune.data.image_checks import ImageFacts
from data_prep.pipeline.inspect_images import Inspected
from data_prep.reading.shapes import are_numbers
from data_prep.reading.source import Item, Source, problem

LAYOUTS = {
    "xyxy": lambda boxes_xyxy: boxes_xyxy,
    "xywh": box_xywh_to_xyxy,
    "yxyx": box_yxyx_to_xyxy,
    "cxcywh": box_cxcywh_to_xyxy,
}
_WORDS = {
    "xyxy": "x0 y0 x1 y1",
    "xywh": "x0 y0 width height",
    "yxyx": "y0 x0 y1 x1",
    "cxcywh": "cx cy width height",
}
# In pixels nobody writes y first. In fractions TensorFlow does, and since a picture's fractions know no width and height, such
# boxes fit as x-first ones too: then the user must say.
_GUESSED = ("xywh", "xyxy", "cxcywh")
_GUESSED_FRACTIONS = (*_GUESSED, "yxyx")
_WITHIN_UNIT = 1.02  # rounding apart, fractions are at most 1
_TOLERATED = 0.01  # share of boxes that may contradict a convention that is guessed
# A box contradicts the convention where it is inverted, or reaches this share of a side beyond the picture.
_OUTSIDE = 0.02
# That so many boxes of pictures so large all lie within 100 pixels of one corner is no chance.
_ENOUGH, _LARGE = 10, 300


@dataclass
class Placed:
    """An item whose rows have a usable box, each in upright pixels. `checked` counts boxes of four numbers,
    `contradictions` names those that cannot be right."""

    id: str
    item: Item
    picture: ImageFacts
    boxes_xyxy: list[list[float]] = field(default_factory=list)
    problems: list[dict] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    checked: int = 0
    within_unit: int = 0
    beyond_unit: int = 0
    in_pixels: bool = False
    largest: float = 0


def place_rows(item_id: str, item: Item, source: Source, picture: ImageFacts) -> Placed:
    """The item with every row that has a usable box, and what had to be changed or dropped."""
    placed, rows = Placed(item_id, item, picture, in_pixels=not source.fractions), []
    placed.problems += [problem(item_id, "no_box", value, "object dropped") for value in item.no_box]
    width, height = picture.upright
    if item.size and item.size not in (picture.stored, picture.upright):
        stated = f"{item.size[0]} × {item.size[1]}, the picture has {width} × {height}"
        unit = "fractions" if source.fractions else "pixels"
        placed.problems.append(problem(item_id, "size_mismatch", stated, f"boxes taken as {unit} of the picture"))
    boxes = iter(_upright_boxes([row.box for row in item.rows if are_numbers(row.box, 4)], item, source, picture))
    for row in item.rows:
        if not are_numbers(row.box, 4):
            placed.problems.append(problem(item_id, "bad_box", row.box, "object dropped"))
            continue
        box, contradicts = next(boxes)
        placed.checked += 1
        placed.within_unit += not source.fractions and max(box) <= 1
        placed.beyond_unit += source.fractions and max(row.box) > _WITHIN_UNIT
        placed.largest = max(placed.largest, *box)
        if contradicts:
            placed.contradictions.append(f"{item_id} ({width} × {height}): {row.category} {row.box}")
        box_xyxy = [_tidy(min(max(value, 0), side)) for value, side in zip(box, (width, height) * 2, strict=True)]
        if box_xyxy[0] >= box_xyxy[2] or box_xyxy[1] >= box_xyxy[3]:
            placed.problems.append(problem(item_id, "bad_box", row.box, "object dropped"))
            continue
        if box_xyxy != [_tidy(value) for value in box]:
            placed.problems.append(problem(item_id, "clipped", row.box, f"clipped to {box_xyxy}"))
        placed.boxes_xyxy.append(box_xyxy)
        rows.append(row)
    item.rows = rows
    return placed


def _upright_boxes(
    boxes: list[list], item: Item, source: Source, picture: ImageFacts
) -> list[tuple[list[float], bool]]:
    """([x0, y0, x1, y1] in upright pixels, not clipped, whether it contradicts the convention) of boxes of four numbers."""
    if not boxes:
        return []
    width, height = _written_on(item, picture)
    turned = (width, height) != picture.upright
    scale = (width, height) * 2 if source.fractions else (1, 1, 1, 1)
    upright = (LAYOUTS[source.layout](np.asarray(boxes, dtype=np.float64)) * scale).tolist()
    if turned:
        upright = [_turn(box, (width, height), picture.orientation) for box in upright]
    return list(zip(upright, contradicting(upright, [picture.upright] * len(upright)).tolist(), strict=True))


def _written_on(item: Item, picture: ImageFacts) -> tuple[int, int]:
    """(width, height) that boxes are written for: the stored ones where the source states those, else the upright ones."""
    return picture.stored if item.size == picture.stored else picture.upright


def _turn(box_xyxy: list[float], stored: tuple[int, int], orientation: int) -> list[float]:
    """A box of the stored picture on the upright one, for the EXIF orientations that exchange width and height."""
    x0, y0, x1, y1 = box_xyxy
    width, height = stored
    return {
        5: [y0, x0, y1, x1],
        6: [height - y1, x0, height - y0, x1],
        7: [height - y1, width - x1, height - y0, width - x0],
        8: [y0, width - x1, y1, width - x0],
    }[orientation]


def contradicting(boxes_xyxy, sizes) -> np.ndarray:
    """(N,) whether each of (N, 4) boxes cannot be right on its (N, 2) picture of width and height."""
    boxes, sides = np.asarray(boxes_xyxy, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    low, high = boxes[:, :2], boxes[:, 2:]
    return ((high < low) | (low < -_OUTSIDE * sides) | (high > (1 + _OUTSIDE) * sides)).any(axis=1)


def _tidy(value: float) -> int | float:
    """At most three decimals; an int where that leaves a whole number."""
    value = round(value, 3)
    return int(value) if value == int(value) else value


def settle_convention(found: Source, inspected: Iterable[Inspected]) -> None:
    """Tell the source's unit, and its layout where that is open, from its boxes, and print them.

    Raises UserError with three examples where no layout fits, or several do.
    """
    total = within = 0
    for _, boxes, _ in _written_boxes(inspected):
        total += len(boxes)
        within += sum(all(abs(value) <= _WITHIN_UNIT for value in box) for box in boxes)
    found.fractions = bool(total) and within >= (1 - _TOLERATED) * total
    unit = "fractions" if found.fractions else "pixels"
    if found.layout or not total:
        found.layout = found.layout or "xywh"
        print(f"boxes: {found.layout} in {unit}", file=sys.stderr)
        return

    def wrong(layout: str, boxes: list, size: tuple[int, int]) -> np.ndarray:
        return contradicting(LAYOUTS[layout](boxes), [(1, 1) if found.fractions else size] * len(boxes))

    guessed = _GUESSED_FRACTIONS if found.fractions else _GUESSED
    against = dict.fromkeys(guessed, 0)
    for _, boxes, size in _written_boxes(inspected):
        for layout in guessed:
            against[layout] += int(wrong(layout, boxes, size).sum())
    fitting = [layout for layout in guessed if against[layout] / total <= _TOLERATED]
    counts = ", ".join(f"{layout} {total - count}" for layout, count in against.items())
    said = f"boxes in {unit}; of {total}, fit as {counts}"
    if len(fitting) == 1:
        found.layout = fitting[0]
        print(f"{said}: read as {found.layout} (--bbox-format says otherwise)", file=sys.stderr)
        return
    best = min(against, key=against.get)
    examples = (
        f"{name} {size}: {[round(value, 4) for value in box]}"
        for name, boxes, size in _written_boxes(inspected)
        for box in boxes
        if fitting or wrong(best, [box], size)[0]
    )
    raise UserError(
        f"{'Several conventions fit' if fitting else 'No convention fits'} ({said}). Say which it is with --bbox-format "
        f"{{{','.join(LAYOUTS)}}}." + (" Examples:" if fitting else f" Against {best}:"),
        [*islice(examples, 3)],
    )


def _written_boxes(inspected: Iterable[Inspected]) -> Iterator[tuple[str, list, tuple[int, int]]]:
    """(name, its boxes of four numbers, the size that they are written for) of every picture that has such boxes."""
    for _, item, picture in inspected:
        if boxes := [row.box for row in item.rows if are_numbers(row.box, 4)]:
            yield item.name, boxes, _written_on(item, picture)


@dataclass
class Summary:
    """What must be known of all placed pictures together, before the first record is written."""

    splits: dict[str, str | None] = field(default_factory=dict)  # the source's own, by id
    digests: dict[str, bytes] = field(default_factory=dict)  # of the pictures, by id
    columns: dict[str, None] = field(default_factory=dict)  # what rows hold beyond box and class, in order
    classes: set[str] = field(default_factory=set)
    checked: int = 0
    within_unit: int = 0
    beyond_unit: int = 0  # boxes that should be fractions, and are greater than 1
    pixels: int = 0  # boxes written in pixels
    largest: float = 0  # of their coordinates
    least_side: float = math.inf  # the longer one of the smallest picture that has such boxes
    contradicting: int = 0
    contradictions: list[str] = field(default_factory=list)  # the first three
    dropped: int = 0
    bad_boxes: list[dict] = field(default_factory=list)  # the first three
    emptied: int = 0  # pictures of which no object could be used
    emptied_example: str = ""

    def add(self, part: Placed) -> None:
        self.splits[part.id], self.digests[part.id] = part.item.split, part.picture.digest
        self.columns |= dict.fromkeys(key for row in part.item.rows for key in row.extra)
        self.classes |= {row.category for row in part.item.rows}
        bad = [entry for entry in part.problems if entry["kind"] == "bad_box"]
        self.checked += part.checked
        self.within_unit += part.within_unit
        self.beyond_unit += part.beyond_unit
        if part.in_pixels and part.checked:
            self.pixels += part.checked
            self.largest = max(self.largest, part.largest)
            self.least_side = min(self.least_side, max(part.picture.upright))
        self.contradicting += len(part.contradictions)
        self.contradictions = (self.contradictions + part.contradictions)[:3]
        self.dropped += len(bad)
        self.bad_boxes = (self.bad_boxes + bad)[:3]
        if not part.boxes_xyxy and any(entry["kind"] in {"bad_box", "no_box"} for entry in part.problems):
            self.emptied += 1
            self.emptied_example = self.emptied_example or part.id


def check_convention(found: Summary, source: Source, may_be_said: bool) -> None:
    """Raise UserError where no box is usable, or so many cannot be right that their numbers must mean something else.

    `may_be_said` is whether --bbox-format says how the boxes of `source` are written.
    """
    if found.contradicting >= 3 and found.contradicting > found.checked / 5:
        read_as = f"{_WORDS[source.layout]} in {'fractions of the picture' if source.fractions else 'pixels'}"
        if found.beyond_unit > found.contradicting / 2:
            guess, remedy = "and these look like pixels", "Divide them by its width and height"
        else:
            guess = "and may be corners, a corner and a size, or y before x instead, or for pictures of another size"
            remedy = "Mend them"
        if may_be_said:
            remedy = f"Say how they are written with --bbox-format {{{','.join(LAYOUTS)}}}"
        raise UserError(
            f"The box convention looks wrong: {found.contradicting} of {found.checked} boxes are inverted or reach outside "
            f"their picture. Boxes are read as {read_as}, {guess}. {remedy}, or pass --allow-bad-boxes if they are really so. "
            "Examples:",
            found.contradictions,
        )
    if found.checked and found.within_unit >= 0.9 * found.checked:
        raise UserError(
            f"The box convention looks wrong: {found.within_unit} of {found.checked} boxes lie within one pixel, as fractions "
            "from 0 to 1 would. Multiply them by the pictures' width and height, use a format of fractions (yolo, aabb), or "
            "pass --allow-bad-boxes."
        )
    if found.pixels >= _ENOUGH and found.largest <= 100 and found.least_side >= _LARGE:
        raise UserError(
            f"The box convention looks wrong: none of {found.pixels} boxes reaches beyond 100, in pictures of at least "
            f"{found.least_side} pixels. Are they percent? Make pixels or fractions of them, or pass --allow-bad-boxes."
        )
    if found.dropped and not found.classes:
        raise UserError(
            f"Not one of {found.dropped} boxes can be used. Are they of another format, or text, or masks without a box? "
            "Examples:",
            [f"{entry['id']}: {entry['value']!r:.100}" for entry in found.bad_boxes],
        )
