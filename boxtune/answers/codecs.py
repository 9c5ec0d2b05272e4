"""Pixel boxes ↔ answer text: one codec per model family, which collator, label check, evaluator and exporter all use.

Two sizes are involved. The *image* is the upright original; records and predictions are in its pixels. The *input* is what
the image processor made of it: (height, width) = image_grid_thw × patch size. A family counts coordinates either in pixels
of the input (Qwen2.5-VL) or in thousandths of the image (Qwen2-VL, Qwen3-VL); docs/architecture.md names the sources.

How coordinates are written as text is the task of boxtune/answers/syntaxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from boxtune.answers.syntaxes import SYNTAXES
from boxtune.answers.syntaxes.parsed import Place
from boxtune.families import FAMILIES

__all__ = ["CODECS", "Answer", "Codec", "Encoded", "Frame", "Place"]

Size = tuple[int, int]  # (height, width)


@dataclass
class Answer:
    """The objects of a response in pixels of the image, as parallel lists, and the problems of its text.

    `boxes_xyxy` holds rows [x0, y0, x1, y1]; click answers fill `points_xy` instead. A place is None if the object cannot be
    located in the text.
    """

    boxes_xyxy: list[list[float]] = field(default_factory=list)
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Encoded:
    """`widened` counts the boxes that rounding would have collapsed. They are one coordinate step wide or high instead."""

    text: str
    widened: int


@dataclass(frozen=True)
class Frame:
    """The coordinates of a family: `steps` across the image, or pixels of the resized input if `steps` is None."""

    steps: int | None

    def extent(self, input_size: Size) -> tuple[int, int]:
        """The (x, y) coordinates of the far border."""
        height, width = input_size
        return (self.steps, self.steps) if self.steps else (width, height)

    def last(self, input_size: Size) -> tuple[int, int]:
        """The largest (x, y) coordinates that are written. In pixels that is size − 1."""
        x, y = self.extent(input_size)
        return (x, y) if self.steps else (x - 1, y - 1)


@dataclass(frozen=True)
class Codec:
    """One way of writing boxes: a syntax (a key of SYNTAXES) and a frame. All sizes are (height, width)."""

    name: str
    syntax: str
    frame: Frame

    @property
    def is_click(self) -> bool:
        return self.syntax == "click"

    def encode(
        self, boxes_xyxy: Sequence[Sequence[float]], labels: list[str], image_size: Size, input_size: Size
    ) -> Encoded:
        """Write boxes given in image pixels. The error is at most half a step per edge, and one step at the far border."""
        height, width = image_size
        extent_x, extent_y = self.frame.extent(input_size)
        last_x, last_y = self.frame.last(input_size)
        rows, widened = [], 0
        for x0, y0, x1, y1 in boxes_xyxy:
            if self.is_click:
                x = _to_step((x0 + x1) / 2, width, extent_x, last_x)
                y = _to_step((y0 + y1) / 2, height, extent_y, last_y)
                rows.append([x, y])
                continue
            left, right, is_wider = _edges_to_steps(x0, x1, width, extent_x, last_x)
            top, bottom, is_taller = _edges_to_steps(y0, y1, height, extent_y, last_y)
            rows.append([left, top, right, bottom])
            widened += is_wider or is_taller
        return Encoded(SYNTAXES[self.syntax].write(rows, labels), widened)

    def decode(self, text: str, image_size: Size, input_size: Size) -> Answer:
        """Read a response back into image pixels. Never raises, whatever the text; see the problems for what was dropped."""
        height, width = image_size
        extents: tuple[int, ...] = self.frame.extent(input_size)
        sizes: tuple[int, ...] = (width, height)
        if not self.is_click:
            extents, sizes = extents * 2, sizes * 2
        parsed = SYNTAXES[self.syntax].parse(text)
        answer = Answer(problems=parsed.problems)
        coordinates = answer.points_xy if self.is_click else answer.boxes_xyxy
        for values, label, place in parsed.objects:
            if len(values) != len(extents) or not _are_finite_numbers(values):
                answer.problems.append("bad_box")
                continue
            label = label.strip() if isinstance(label, str) else ""
            if not label:
                answer.problems.append("bad_label")
                continue
            # Comparisons take a third of the time of min and max.
            inside = [0 if v < 0 else most if v > most else v for v, most in zip(values, extents, strict=True)]
            pixels = [v * size / extent for v, size, extent in zip(inside, sizes, extents, strict=True)]
            if not self.is_click and (pixels[2] <= pixels[0] or pixels[3] <= pixels[1]):
                answer.problems.append("bad_box")
                continue
            if inside != [*values]:
                answer.problems.append("clipped")
            coordinates.append(pixels)
            answer.labels.append(label)
            answer.places.append(place)
        return answer

    def tolerance(self, image_size: Size, input_size: Size) -> tuple[float, float]:
        """One coordinate step in image pixels, as (x, y): the largest error of an encoded edge."""
        height, width = image_size
        extent_x, extent_y = self.frame.extent(input_size)
        return width / extent_x, height / extent_y


def _to_step(value: float, size: float, extent: int, last: int) -> int:
    """The coordinate step nearest to a pixel position, halves rounded up, within the image."""
    nearest = math.floor(value / size * extent + 0.5)
    return min(max(nearest, 0), last)


def _edges_to_steps(low: float, high: float, size: float, extent: int, last: int) -> tuple[int, int, bool]:
    """Two edges in steps. If both round to the same step, one moves to the next step on the nearer side, and the flag is True."""
    first, second = _to_step(low, size, extent, last), _to_step(high, size, extent, last)
    if second > first:
        return first, second, False
    middle = (low + high) / 2 / size * extent
    if first == last or (first > 0 and middle < first):
        return first - 1, first, True
    return first, first + 1, True


def _are_finite_numbers(values: Sequence[object]) -> TypeGuard[Sequence[float]]:
    return all(_is_finite_number(value) for value in values)


def _is_finite_number(value: object) -> bool:
    # math.isfinite would raise on an integer that is too large for a float; such integers are clipped later.
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int or (isinstance(value, float) and math.isfinite(value))


_BOX_CODECS = [Codec(family.name, family.syntax, Frame(family.coordinate_steps)) for family in FAMILIES.values()]
_CLICK_CODECS = [Codec(f"{box_codec.name}_click", "click", box_codec.frame) for box_codec in _BOX_CODECS]
CODECS = {codec.name: codec for codec in (*_BOX_CODECS, *_CLICK_CODECS)}
