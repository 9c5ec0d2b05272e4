"""Pixel boxes ↔ answer text: one codec per model family, which collator, label check, evaluator and exporter all use.

Two sizes are involved. The *image* is the upright original; records and predictions are in its pixels. The *input* is what
the image processor made of it: (height, width) = image_grid_thw × patch size. A family counts coordinates either in pixels
of the input (Qwen2.5-VL) or in thousandths of the image (the others); docs/architecture.md names the sources.

How coordinates are written as text is the task of boxtune/answers/syntaxes.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeGuard

from boxtune.answers.syntaxes import SYNTAXES, json_boxes
from boxtune.answers.syntaxes.parsed import Parsed, Place
from boxtune.common.errors import UserError
from boxtune.families import FAMILIES

__all__ = ["CODECS", "THINK_END", "THINK_START", "Answer", "Codec", "Encoded", "Frame", "Place", "with_captions"]

Size = tuple[int, int]  # (height, width)

THINK_START, THINK_END = "<think>", "</think>"


@dataclass
class Answer:
    """The objects of a response in pixels of the image, as parallel lists, and the problems of its text.

    `boxes_xyxy` holds rows [x0, y0, x1, y1]; click answers fill `points_xy` instead. `captions` is empty if the codec has none.
    """

    boxes_xyxy: list[list[float]] = field(default_factory=list)
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
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

    def box_to_steps(self, box_xyxy: Sequence[float], image_size: Size, input_size: Size) -> tuple[list[int], bool]:
        """(the coordinates of a box given in image pixels, whether it was widened because it would have collapsed)."""
        x0, y0, x1, y1 = box_xyxy
        height, width = image_size
        extent_x, extent_y = self.extent(input_size)
        last_x, last_y = self.last(input_size)
        left, right, is_wider = _edges_to_steps(x0, x1, width, extent_x, last_x)
        top, bottom, is_taller = _edges_to_steps(y0, y1, height, extent_y, last_y)
        return [left, top, right, bottom], is_wider or is_taller


@dataclass(frozen=True)
class Codec:
    """One way of writing boxes: a syntax (a key of SYNTAXES) and a frame. All sizes are (height, width).

    has_captions: whether each object may have a caption, which JSON can hold.
    """

    name: str
    syntax: str
    frame: Frame
    has_captions: bool = False

    @property
    def is_click(self) -> bool:
        return self.syntax == "click"

    def encode(
        self,
        boxes_xyxy: Sequence[Sequence[float]],
        labels: list[str],
        image_size: Size,
        input_size: Size,
        captions: Sequence[str | None] | None = None,
    ) -> Encoded:
        """Write boxes given in image pixels. The error is at most half a step per edge, and one step at the far border.

        captions: one for each box, None where it has none; only a codec with `has_captions` writes them.
        """
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
            row, is_widened = self.frame.box_to_steps([x0, y0, x1, y1], image_size, input_size)
            rows.append(row)
            widened += is_widened
        if self.has_captions and captions is not None:
            return Encoded(json_boxes.write_captioned(rows, labels, captions), widened)
        return Encoded(SYNTAXES[self.syntax].write(rows, labels), widened)

    def decode(
        self, text: str, image_size: Size, input_size: Size, asked: Sequence[str] = (), starts_in_thought: bool = False
    ) -> Answer:
        """Read a response back into image pixels. Never raises, whatever the text; see the problems for what was dropped.

        asked: the classes that the question asked for. A label that differs from exactly one of them only in case, width or
        outer space is that class; an object without a label takes the class if it is the only one.
        starts_in_thought: the prompt ended in an open think block, so the answer begins after the first </think>.
        """
        height, width = image_size
        extents: tuple[int, ...] = self.frame.extent(input_size)
        sizes: tuple[int, ...] = (width, height)
        if not self.is_click:
            extents, sizes = extents * 2, sizes * 2
        parsed = self._parse(text, starts_in_thought)
        answer, known = Answer(problems=parsed.problems), frozenset(asked)
        coordinates = answer.points_xy if self.is_click else answer.boxes_xyxy
        for values, label, place, caption in parsed.objects:
            if len(values) != len(extents) or not _are_finite_numbers(values):
                answer.problems.append("bad_box")
                continue
            name, label_problem = (label, None) if label and label in known else _read_label(label, asked)
            if not name:
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
            if label_problem:
                answer.problems.append(label_problem)
            coordinates.append(pixels)
            answer.labels.append(name)
            answer.places.append(place if self.has_captions else place._replace(caption=(0, 0)))
            if self.has_captions:
                answer.captions.append((caption or "").strip() or None)
                if caption == "":
                    answer.problems.append("bad_caption")
        return answer

    def _parse(self, text: str, starts_in_thought: bool) -> Parsed:
        """The objects and problems of a response. What the model thought before it answered is no part of the answer."""
        if "think>" not in text and not starts_in_thought:
            return SYNTAXES[self.syntax].parse(text)
        thoughts_end = text.rfind(THINK_END)
        start = 0 if thoughts_end < 0 else thoughts_end + len(THINK_END)
        if (starts_in_thought and not start) or text.find(THINK_START, start) >= 0:  # it never closes
            return Parsed(problems=["thinking", "truncated", "unparsable"])
        if not start:  # text that only resembles the tags
            return SYNTAXES[self.syntax].parse(text)
        answer = text[start:].lstrip()
        start = len(text) - len(answer)
        parsed = SYNTAXES[self.syntax].parse(answer)
        objects = [found._replace(place=found.place.moved(start)) for found in parsed.objects]
        return Parsed(objects, ["thinking", *parsed.problems])

    def tolerance(self, image_size: Size, input_size: Size) -> tuple[float, float]:
        """One coordinate step in image pixels, as (x, y): the largest error of an encoded edge."""
        height, width = image_size
        extent_x, extent_y = self.frame.extent(input_size)
        return width / extent_x, height / extent_y


def _read_label(label: str | None, asked: Sequence[str]) -> tuple[str, str | None]:
    """(the name that a label which is no asked class stands for, or "", and the problem with it or None)."""
    if label is None:
        return (asked[0], "no_label") if len(asked) == 1 else ("", None)
    same = _by_folded_name(tuple(asked)).get(fold_name(label)) if asked else None
    return (same, "label_case") if same else (label.strip(), None)


@lru_cache(maxsize=100)
def _by_folded_name(classes: tuple[str, ...]) -> dict[str, str]:
    """{folded name: class}, without the names that several classes share."""
    names = Counter(map(fold_name, classes))
    return {fold_name(name): name for name in classes if names[fold_name(name)] == 1}


@lru_cache(maxsize=2000)
def fold_name(label: str) -> str:
    """The label without case, outer space and the difference between full-width and ordinary characters."""
    narrow = "".join(
        unicodedata.normalize("NFKC", character) if unicodedata.east_asian_width(character) in "FH" else character
        for character in label
    )
    return unicodedata.normalize("NFC", narrow).strip().casefold()


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
_CAPTION_CODECS = [
    replace(codec, name=f"{codec.name}_captions", has_captions=True)
    for codec in _BOX_CODECS
    if codec.syntax == "json_boxes"
]
CODECS = {codec.name: codec for codec in (*_BOX_CODECS, *_CLICK_CODECS, *_CAPTION_CODECS)}


def with_captions(codec: Codec) -> Codec:
    """The codec that also writes and reads captions. Raises UserError if its syntax cannot hold them."""
    if codec.syntax != "json_boxes":
        raise UserError(
            f"captions: {codec.name} does not write its objects as JSON, so they cannot have captions. Omit captions, or use a "
            "model family that answers in JSON, such as Qwen2.5-VL or Qwen3-VL."
        )
    return CODECS[f"{codec.name}_captions"]
