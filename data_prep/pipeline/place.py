"""The boxes of a source → xyxy in pixels of the upright image: converted, rotated and clipped."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from boxtune.data.image_checks import ImageFacts
from boxtune.data.record_checks import is_area
from data_prep.pipeline.inspect_images import Inspected
from data_prep.pipeline.layouts import LAYOUTS, MAX_FRACTION, Convention, as_array, implausible
from data_prep.pipeline.orientation import annotated_size, to_upright
from data_prep.reading.shapes import are_numbers
from data_prep.reading.source import Item, Row, problem


@dataclass
class PlacedObject:
    """One object of the dataset. `extra` holds what the source states beyond box and class."""

    box_xyxy: list[int | float]
    category: str
    ignore: bool
    extra: dict[str, Any]


@dataclass
class BoxCounts:
    """What one image says about the box convention, counted over its boxes of four numbers.

    checked: all of them. within_unit: boxes in pixels with no coordinate above 1. beyond_unit: boxes in fractions with a
    number above 1. largest: the greatest coordinate in pixels. turned: boxes that were turned with their image. implausible:
    descriptions of the implausible boxes.
    """

    checked: int = 0
    within_unit: int = 0
    beyond_unit: int = 0
    largest: float = 0
    turned: int = 0
    implausible: list[str] = field(default_factory=list)


@dataclass
class PlacedImage:
    """One image of the dataset, with its usable objects and the problems of the others.

    name: source-relative path with extension. split: as the source states it. extra: further keys of the record.
    """

    id: str
    name: str
    image_path: str
    facts: ImageFacts
    split: str | None
    extra: dict[str, Any]
    objects: list[PlacedObject] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    counts: BoxCounts = field(default_factory=BoxCounts)


class _UprightBox(NamedTuple):
    """A box in pixels of the upright image, not clipped."""

    box_xyxy: list[float]
    is_implausible: bool


def place_objects(image: Inspected, rows: list[Row], classes: list[str], convention: Convention) -> PlacedImage:
    """The image with every one of the `rows` that has a usable box; clipped and dropped boxes are listed as problems. A row
    of every class becomes an object of each of the `classes`."""
    item, facts = image.item, image.facts
    placed = PlacedImage(image.id, item.name, item.image_path, facts, item.split, item.extra)
    placed.problems += [problem(image.id, "no_box", value, "object dropped") for value in item.no_box]
    placed.problems += _size_problems(image, convention)
    for row, upright in zip(rows, _upright_boxes(rows, item, facts, convention), strict=True):
        if upright:
            _count_box(placed, row, upright, convention, annotated_size(item, facts) != facts.upright)
        box_xyxy = _clip(upright.box_xyxy, facts.upright) if upright else None
        if not upright or not box_xyxy:
            placed.problems.append(problem(image.id, "bad_box", row.box, "object dropped"))
            continue
        if box_xyxy != [_rounded(value) for value in upright.box_xyxy]:
            placed.problems.append(problem(image.id, "clipped", row.box, f"clipped to {box_xyxy}"))
        names = classes if row.every_class else [row.category]
        placed.objects += [PlacedObject(box_xyxy, name, row.ignore, _extra(row, convention)) for name in names]
    return placed


def _extra(row: Row, convention: Convention) -> dict[str, Any]:
    """What the source states beyond box and class. `area` decides AP by size, so a value that is no number of square pixels
    is kept as `source_area`."""
    area = row.extra.get("area")
    if area is None or (is_area(area) and not convention.fractions):
        return row.extra
    return {("source_area" if key == "area" else key): value for key, value in row.extra.items()}


def _size_problems(image: Inspected, convention: Convention) -> list[dict[str, Any]]:
    """A problem if the source states a size that is neither the stored nor the upright one."""
    size, facts = image.item.size, image.facts
    if not size or size in (facts.stored, facts.upright):
        return []
    # Like all values and actions in problems.jsonl, these wordings are part of the file format.
    value = f"{size[0]} × {size[1]}, the picture has {facts.upright[0]} × {facts.upright[1]}"
    unit = "fractions" if convention.fractions else "pixels"
    return [problem(image.id, "size_mismatch", value, f"boxes taken as {unit} of the picture")]


def _upright_boxes(rows: list[Row], item: Item, facts: ImageFacts, convention: Convention) -> list[_UprightBox | None]:
    """The box of each row; None if it is not four numbers."""
    numeric = [are_numbers(row.box, 4) for row in rows]
    boxes = as_array([row.box for row, is_numeric in zip(rows, numeric, strict=True) if is_numeric])
    width, height = annotated_size(item, facts)
    scale = [side / convention.whole for side in (width, height) * 2] if convention.fractions else [1, 1, 1, 1]
    upright = (LAYOUTS[convention.layout](boxes) * scale).tolist()
    if (width, height) != facts.upright:
        upright = [to_upright(box, (width, height), facts.orientation) for box in upright]
    marks = implausible(as_array(upright), facts.upright).tolist()
    results = map(_UprightBox, upright, marks)
    return [next(results) if is_numeric else None for is_numeric in numeric]


def _count_box(placed: PlacedImage, row: Row, upright: _UprightBox, convention: Convention, is_turned: bool) -> None:
    counts = placed.counts
    counts.checked += 1
    counts.turned += is_turned
    if convention.fractions:
        counts.beyond_unit += max(row.box) > MAX_FRACTION * convention.whole
    else:
        counts.within_unit += max(upright.box_xyxy) <= 1
    counts.largest = max(counts.largest, *upright.box_xyxy)
    if upright.is_implausible:
        width, height = placed.facts.upright
        counts.implausible.append(f"{placed.id} ({width} × {height}): {row.category} {row.box}")


def _clip(box_xyxy: list[float], size: tuple[int, int]) -> list[int | float] | None:
    """The part of a box that is inside an image of `size` (width, height); None if nothing is."""
    x0, y0, x1, y1 = (_rounded(min(max(value, 0), side)) for value, side in zip(box_xyxy, size * 2, strict=True))
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def _rounded(value: float) -> int | float:
    """At most three decimals; an int if that is a whole number."""
    value = round(value, 3)
    return int(value) if value == int(value) else value
