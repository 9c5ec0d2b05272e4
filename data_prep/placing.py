"""Source boxes → xyxy pixels of the upright picture: conversion, rotation, clipping, and the check for a wrong convention."""

import sys
from dataclasses import dataclass, field

import numpy as np

from boxtune.boxes import box_cxcywh_to_xyxy, box_xywh_to_xyxy, box_yxyx_to_xyxy
from boxtune.errors import UserError
from boxtune.pictures import Picture
from data_prep.shapes import are_numbers
from data_prep.source import Item, Row, Source, problem

LAYOUTS = {
    "xyxy": lambda boxes_xyxy: boxes_xyxy,
    "xywh": box_xywh_to_xyxy,
    "yxyx": box_yxyx_to_xyxy,
    "cxcywh": box_cxcywh_to_xyxy,
}
# In pixels nobody writes y first. In fractions TensorFlow does, and since a picture's fractions know no width and height, such
# boxes fit as x-first ones too: then the user must say.
_GUESSED = ("xywh", "xyxy", "cxcywh")
_GUESSED_FRACTIONS = (*_GUESSED, "yxyx")
_WITHIN_UNIT = 1.02  # rounding apart, fractions are at most 1
_TOLERATED = 0.01  # share of boxes that may contradict a convention that is guessed
# A box contradicts the convention where it is inverted, or reaches this share of a side beyond the picture.
_OUTSIDE = 0.02


@dataclass
class Placed:
    """Objects in upright pixels. `checked` counts boxes of four numbers, `contradictions` names those that cannot be right."""

    boxes_xyxy: list[list[float]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    problems: list[dict] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    checked: int = 0
    within_unit: int = 0


def place_rows(item_id: str, item: Item, source: Source, picture: Picture) -> Placed:
    """Every row of an item that has a usable box, and what had to be changed or dropped."""
    placed = Placed()
    width, height = picture.upright
    if item.size and item.size not in (picture.stored, picture.upright):
        stated = f"{item.size[0]} × {item.size[1]}, the picture has {width} × {height}"
        unit = "fractions" if source.fractions else "pixels"
        placed.problems.append(problem(item_id, "size_mismatch", stated, f"boxes taken as {unit} of the picture"))
    for row in item.rows:
        box = _upright_box(row.box, item, source, picture)
        if box is None:
            placed.problems.append(problem(item_id, "bad_box", row.box, "object dropped"))
            continue
        placed.checked += 1
        placed.within_unit += not source.fractions and max(box) <= 1
        if contradicting([box], [(width, height)])[0]:
            placed.contradictions.append(f"{item_id} ({width} × {height}): {row.category} {row.box}")
        box_xyxy = [_tidy(min(max(value, 0), side)) for value, side in zip(box, (width, height) * 2, strict=True)]
        if box_xyxy[0] >= box_xyxy[2] or box_xyxy[1] >= box_xyxy[3]:
            placed.problems.append(problem(item_id, "bad_box", row.box, "object dropped"))
            continue
        if box_xyxy != [_tidy(value) for value in box]:
            placed.problems.append(problem(item_id, "clipped", row.box, f"clipped to {box_xyxy}"))
        placed.boxes_xyxy.append(box_xyxy)
        placed.rows.append(row)
    return placed


def _upright_box(box: list, item: Item, source: Source, picture: Picture) -> list[float] | None:
    """[x0, y0, x1, y1] in upright pixels, not clipped; None where the source wrote no four numbers."""
    if not are_numbers(box, 4):
        return None
    width, height = _written_on(item, picture)
    turned = (width, height) != picture.upright
    scale = (width, height) * 2 if source.fractions else (1, 1, 1, 1)
    x0, y0, x1, y1 = (float(value) * side for value, side in zip(LAYOUTS[source.layout]([box])[0], scale, strict=True))
    return _turn([x0, y0, x1, y1], (width, height), picture.orientation) if turned else [x0, y0, x1, y1]


def _written_on(item: Item, picture: Picture) -> tuple[int, int]:
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


def settle_convention(found: Source, items: dict[str, Item], inspected: dict[str, Picture]) -> None:
    """Tell the source's unit, and its layout where that is open, from its boxes, and print them.

    Raises UserError with three examples where no layout fits, or several do.
    """
    triples = [
        (item.name, row.box, _written_on(item, inspected[item_id]))
        for item_id, item in items.items()
        for row in item.rows
        if are_numbers(row.box, 4)
    ]
    within = sum(all(abs(value) <= _WITHIN_UNIT for value in box) for _, box, _ in triples)
    found.fractions = bool(triples) and within >= (1 - _TOLERATED) * len(triples)
    unit = "fractions" if found.fractions else "pixels"
    if found.layout or not triples:
        found.layout = found.layout or "xywh"
        print(f"boxes: {found.layout} in {unit}", file=sys.stderr)
        return
    boxes, sides = [box for _, box, _ in triples], [(1, 1) if found.fractions else size for _, _, size in triples]
    guessed = _GUESSED_FRACTIONS if found.fractions else _GUESSED
    against = {layout: contradicting(LAYOUTS[layout](boxes), sides) for layout in guessed}
    fitting = [layout for layout in guessed if against[layout].mean() <= _TOLERATED]
    counts = ", ".join(f"{layout} {len(triples) - wrong.sum()}" for layout, wrong in against.items())
    said = f"boxes in {unit}; of {len(triples)}, fit as {counts}"
    if len(fitting) == 1:
        found.layout = fitting[0]
        print(f"{said}: read as {found.layout} (--bbox-format says otherwise)", file=sys.stderr)
        return
    best = min(against, key=lambda layout: against[layout].sum())
    examples = [triple for triple, wrong in zip(triples, against[best], strict=True) if wrong or fitting][:3]
    raise UserError(
        f"{'Several conventions fit' if fitting else 'No convention fits'} ({said}). Say which it is with --bbox-format "
        f"{{{','.join(LAYOUTS)}}}." + (" Examples:" if fitting else f" Against {best}:"),
        [f"{name} {size}: {[round(value, 4) for value in box]}" for name, box, size in examples],
    )


def check_convention(placed: list[Placed]) -> None:
    """Raise UserError where no box is usable, or so many cannot be right that their numbers must mean something else."""
    checked = sum(part.checked for part in placed)
    examples = [line for part in placed for line in part.contradictions]
    if len(examples) >= 3 and len(examples) > checked / 5:
        raise UserError(
            f"The box convention looks wrong: {len(examples)} of {checked} boxes are inverted or reach outside their picture. "
            "Are they [x, y, width, height] taken for corners, y before x, or made for pictures of another size? Pass the "
            "format that the boxes have, or --allow-bad-boxes if they are really so. Examples:",
            examples[:3],
        )
    within = sum(part.within_unit for part in placed)
    if checked >= 3 and within >= 0.9 * checked:
        raise UserError(
            f"The box convention looks wrong: {within} of {checked} boxes lie within one pixel, as fractions from 0 to 1 would. "
            "Multiply them by the pictures' width and height, use a format of fractions (yolo, aabb), or pass "
            "--allow-bad-boxes."
        )
    dropped = [entry for part in placed for entry in part.problems if entry["kind"] == "bad_box"]
    if dropped and not any(part.rows for part in placed):
        raise UserError(
            f"Not one of {len(dropped)} boxes can be used. Are they of another format, or text, or masks without a box? "
            "With --allow-bad-boxes all pictures are taken as empty. Examples:",
            [f"{entry['id']}: {entry['value']!r:.100}" for entry in dropped[:3]],
        )
