"""Pixel boxes ↔ answer text: one codec per model family, used by converter, collator, evaluator and exporter alike.

Two frames are involved. The *image* is the upright original, in whose pixels records and predictions are written. The
*input* is what the image processor made of it, (height, width) = image_grid_thw × patch size. Families count either the
input's pixels (Qwen2.5-VL) or thousandths of the picture (Qwen2-VL, Qwen3-VL); see docs/architecture.md for sources.

Parsers never raise and take linear time on any text. They make one strict attempt and then one tolerant pass, name what
they had to overlook in `Answer.problems`, and never repair a box by guessing.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from boxtune.families import FAMILIES


class Place(NamedTuple):
    """Where an object stands in the text of an answer: (start, end) of its numbers and of its label, in characters."""

    numbers: tuple[int, int]
    label: tuple[int, int]

    def moved(self, by: int) -> "Place":
        (start, end), (label_start, label_end) = self
        return Place((start + by, end + by), (label_start + by, label_end + by))


@dataclass
class Answer:
    """Objects in the pixels of the image. `boxes_xyxy` rows are [x0, y0, x1, y1]; click answers fill `points_xy` instead.

    `places` are None where the text is so mangled that an object cannot be found in it again.
    """

    boxes_xyxy: list[list[float]] = field(default_factory=list)
    points_xy: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    places: list[Place | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Encoded:
    """`widened` counts boxes that rounding would have collapsed and that were widened to one coordinate step."""

    text: str
    widened: int


@dataclass
class _Parsed:
    """What a text says, in the codec's own coordinates: (values, label, place) of each object. `values` may be of any length
    and type."""

    objects: list[tuple[Sequence, object, Place | None]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


@dataclass(frozen=True)
class Frame:
    """How a family counts: `steps` of 1000 across the picture, or None for pixels of the resized input."""

    steps: int | None

    def extent(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(x, y) value of the far border."""
        height, width = input_size
        return (self.steps, self.steps) if self.steps else (width, height)

    def last(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(x, y) largest value that is written; a pixel frame ends at size − 1."""
        x, y = self.extent(input_size)
        return (x, y) if self.steps else (x - 1, y - 1)


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _to_step(value: float, size: float, extent: int, last: int) -> int:
    return min(max(_round_half_up(value / size * extent), 0), last)


def _span(low: float, high: float, size: float, extent: int, last: int) -> tuple[int, int, bool]:
    """Two edges in steps, and whether they fell together and were widened by one step, to the nearer side."""
    first, second = _to_step(low, size, extent, last), _to_step(high, size, extent, last)
    if second > first:
        return first, second, False
    downwards = first == last or (first > 0 and (low + high) / 2 / size * extent < first)
    return (first - 1, first, True) if downwards else (first, first + 1, True)


@dataclass(frozen=True)
class Codec:
    """One way of writing boxes. `syntax` is "json", "qwen2_vl" or "click"; sizes are (height, width)."""

    name: str
    syntax: str
    frame: Frame

    @property
    def is_click(self) -> bool:
        return self.syntax == "click"

    def encode(
        self, boxes_xyxy, labels: list[str], image_size: tuple[int, int], input_size: tuple[int, int]
    ) -> Encoded:
        """Write boxes given in image pixels. Each edge errs by at most half a step, one step at the far border."""
        height, width = image_size
        extent_x, extent_y = self.frame.extent(input_size)
        last_x, last_y = self.frame.last(input_size)
        rows, widened = [], 0
        for x0, y0, x1, y1 in boxes_xyxy:
            if self.is_click:
                rows.append(
                    [
                        _to_step((x0 + x1) / 2, width, extent_x, last_x),
                        _to_step((y0 + y1) / 2, height, extent_y, last_y),
                    ]
                )
                continue
            left, right, wide = _span(x0, x1, width, extent_x, last_x)
            top, bottom, tall = _span(y0, y1, height, extent_y, last_y)
            rows.append([left, top, right, bottom])
            widened += wide or tall
        return Encoded(_WRITERS[self.syntax](rows, labels), widened)

    def decode(self, text: str, image_size: tuple[int, int], input_size: tuple[int, int]) -> Answer:
        """Read an answer back into image pixels. Never raises, whatever the text."""
        parsed = _PARSERS[self.syntax](text)
        height, width = image_size
        answer = Answer(problems=parsed.problems)
        places = answer.points_xy if self.is_click else answer.boxes_xyxy
        extents, sizes = self.frame.extent(input_size), (width, height)
        if not self.is_click:
            extents, sizes = extents * 2, sizes * 2
        for values, label, place in parsed.objects:
            if len(values) != len(extents) or not all(map(_is_finite_number, values)):
                answer.problems.append("bad_box")
                continue
            label = label.strip() if isinstance(label, str) else ""
            if not label:
                answer.problems.append("bad_label")
                continue
            # min and max would take thrice as long.
            inside = [0 if v < 0 else most if v > most else v for v, most in zip(values, extents, strict=True)]
            pixels = [v * size / extent for v, size, extent in zip(inside, sizes, extents, strict=True)]
            if not self.is_click and (pixels[2] <= pixels[0] or pixels[3] <= pixels[1]):
                answer.problems.append("bad_box")
                continue
            if inside != [*values]:
                answer.problems.append("clipped")
            places.append(pixels)
            answer.labels.append(label)
            answer.places.append(place)
        return answer

    def tolerance(self, image_size: tuple[int, int], input_size: tuple[int, int]) -> tuple[float, float]:
        """(x, y) image pixels of one coordinate step, the most that an encoded edge may err."""
        height, width = image_size
        extent_x, extent_y = self.frame.extent(input_size)
        return width / extent_x, height / extent_y


def _is_finite_number(value) -> bool:
    # An int may be too large for a float; a comparison is exact for any size, math.isfinite is not.
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


# ---- JSON: [{"bbox_2d": [x0, y0, x1, y1], "label": "…"}] ---------------------------------------------------------------

_FENCE = re.compile(r"```[a-zA-Z]*")
# Tokens of anything that resembles JSON. Every repetition is possessive, so that no text is scanned more than a few times.
_NUMBER = r"[-+]?\d[\d.eE+-]*+|[-+]?\.\d[\d.eE+-]*+"
_WORD = r"[A-Za-z_]\w*+"
# Strings run to their own quote, or to the end of the line where it is missing. A quote inside a label closes it only where
# a value may end.
_DOUBLE = r"\"(?:[^\"\\\n]++|\\.|\"(?!\s*+[,:}\]]))*+\"?+"
_STRING = rf"(?:{_DOUBLE}|'(?:[^'\\\n]++|\\.|'(?!\s*+[,:}}\]]))*+'?+)"
_NESTED = r"(?!)"
for _ in range(4):  # the deepest nesting of objects in a value; one that lies deeper ends a torn object
    _NESTED = rf"\{{(?:[^{{}}\"']++|{_STRING}|{_NESTED})*+(?:\}}|\Z)"
# What may stand between two tokens, objects as values among it: nothing in them is read.
_BLANK = rf"[^{{}}\[\]:,\"'A-Za-z_\d.+-]++|[-+](?!\.?\d)|\.(?!\d)|{_NESTED}"
_GAP = rf"(?:{_BLANK})*+"
# What follows a "{", up to the "}" that closes it, to the end of the text, or to a "{" that is no value: then it is torn.
_BODY = rf"[^{{}}\"':]*+(?:(?:{_STRING}|:{_GAP})[^{{}}\"':]*+)*+"
# Text outside, with each {} that holds nothing; objects up to the next that closes; the last of them by itself; its "}".
_OBJECT = re.compile(rf"((?:[^{{]++|\{{\}})*+)((?:(\{{{_BODY}))*+)(\}}?+)")
_INSIDE_LIST = rf"(?:[^\[\]\"'{{]++|{_STRING}|{_NESTED})*+"
_NO_VALUE = rf"{_BLANK}|[:,\]}}]++|\[{_INSIDE_LIST}(?!\])"
_SCALAR = rf"(?:{_STRING}|{_WORD})(?!{_GAP}:)|{_NUMBER}"
# The last of some keys, its value, and what else stands there, up to the next key or list.
_FIELD = re.compile(
    rf"(?:({_STRING}|{_WORD}){_GAP}:(?:{_NO_VALUE})*+)*+"
    rf"(?:(\[{_INSIDE_LIST}\]|{_SCALAR})(?:{_SCALAR}|{_NO_VALUE})*+)?+(?:{_NO_VALUE})*+"
)
_ITEM = re.compile(rf"{_NESTED}|({_STRING}|{_WORD}|{_NUMBER})")
_UNQUOTED = re.compile(rf"\{{(?:[^{{A-Za-z_\"'\d.+-]++|{_DOUBLE}|{_NUMBER}|[-+.]|{_NESTED})*+[A-Za-z_']")
# What nearly every object is; it is read the same without this, but ten times as slowly.
_USUAL = re.compile(
    r"\{\s*+\"bbox_2d\"\s*+:\s*+\[(\s*+([0-9]{1,9}+)\s*+,\s*+([0-9]{1,9}+)\s*+,\s*+([0-9]{1,9}+)\s*+,\s*+([0-9]{1,9}+)\s*+)\]"
    r"\s*+,\s*+\"label\"\s*+:\s*+\"([^\"\\\n]*+)\"\s*+\}"
)


def _write_json(rows: list[list[int]], labels: list[str]) -> str:
    return json.dumps(
        [{"bbox_2d": row, "label": label} for row, label in zip(rows, labels, strict=True)], ensure_ascii=False
    )


def _parse_json(text: str) -> _Parsed:
    body = text.strip()
    try:
        data, end = json.JSONDecoder().raw_decode(body)
        canonical = json.dumps(data, ensure_ascii=False)
    except (ValueError, RecursionError):
        return _scan_json(text)
    if "bbox_2d" in body[end:]:  # several lists, or one object a line
        return _scan_json(text)
    items = [data] if isinstance(data, dict) else data
    if not isinstance(items, list) or not all(isinstance(item, dict) and "bbox_2d" in item for item in items):
        return _scan_json(text, whole=not body[end:].strip())
    parsed = _Parsed()
    places = [place for _, _, place in _scan_json(text).objects]
    for item, place in zip(items, places if len(places) == len(items) else [None] * len(items), strict=True):
        values = item["bbox_2d"]
        parsed.objects.append((values if isinstance(values, list) else [], item.get("label"), place))
        if isinstance(values, list) and any(isinstance(value, float) for value in values):
            parsed.note("float")
        if list(item)[:2] != ["bbox_2d", "label"]:
            parsed.note("key_order")
    if body[end:].strip():
        parsed.note("prose")
    if not parsed.problems and text != canonical:
        parsed.note("spacing")
    return parsed


def _scan_json(text: str, whole: bool = False) -> _Parsed:
    """One pass that collects every complete {…} which holds a bbox_2d. `whole` says that the text is JSON to its end."""
    parsed = _Parsed()
    if _FENCE.search(text):
        parsed.note("fence")
    pieces, read, position = _OBJECT.findall(text), {}, 0
    for before, run, body, end in pieces:
        position += len(before) + len(run) + len(end)
        if end and body not in read:  # a looping model says the same again and again
            problems, read[body] = _read_object(body + end)
            for problem in problems:
                parsed.note(problem)
        if end and read[body]:
            values, label, place = read[body]
            parsed.objects.append((values, label, place.moved(position - len(body) - len(end))))
    around = _FENCE.sub("", "".join(before for before, *_ in pieces).replace("{}", ""))
    torn = any(len(run) > len(body) or (run and not end) for _, run, body, end in pieces)
    if not whole and (torn or ("[" in around and "]" not in around)):
        parsed.note("truncated")
    others = sum(bool(end) and ":" in body and not read[body] for _, _, body, end in pieces)  # {…} that say no box
    parsed.problems += ["bad_box"] * others
    empty_list = not parsed.objects and not others and re.sub(r"\s+", "", around) == "[]"
    if re.search(r"[^\s,\[\]]", around):
        parsed.note("prose")
    if not parsed.objects and not empty_list:
        parsed.problems = ["unparsable"] if "truncated" not in parsed.problems else ["truncated", "unparsable"]
    elif not parsed.problems:
        parsed.note("spacing")
    return parsed


def _read_object(text: str) -> tuple[list[str], tuple[list, str, Place] | None]:
    """(problems, (values, label, place) if it has a bbox_2d) of one {…}; the first value of a key counts."""
    if usual := _USUAL.fullmatch(text):
        _, *numbers, label = usual.groups()
        return [], ([*map(int, numbers)], label, Place(usual.span(1), usual.span(6)))
    problems = ["quotes"] if _UNQUOTED.match(text) else []
    if "bbox_2d" not in text and "\\u00" not in text:  # nor spelled in escapes
        return problems, None
    fields: dict[str | None, tuple[str, int]] = {}  # the text of a value, and where it starts
    for match in _FIELD.finditer(text, 1):
        key, value = match.groups()
        if value and (key or (value[0] == "[" and not fields)):
            fields.setdefault(key and _unquote(key), (value, match.start(2)))
            if "bbox_2d" in fields and "label" in fields:
                break
    if "bbox_2d" not in fields:
        return problems, None
    (box, box_start), (label, label_start) = fields["bbox_2d"], fields.get("label", ("", 0))
    label = "" if label.startswith("[") else label
    numbers = [_number(item) for item in _ITEM.findall(box) if item] if box[0] == "[" else []
    if float in map(type, numbers):
        problems.append("float")
    if [*fields][:2] != ["bbox_2d", "label"]:
        problems.append("key_order")
    label_start += label.startswith(("'", '"'))
    place = Place((box_start + 1, box_start + len(box) - 1), (label_start, label_start + len(_letters(label))))
    return problems, (numbers, _unquote(label), place)


def _letters(token: str) -> str:
    """A token without its quotes."""
    if token[:1] not in ("'", '"'):
        return token
    return token[1:-1] if len(token) > 1 and token[-1] == token[0] else token[1:]


def _unquote(token: str) -> str:
    letters = _letters(token)
    if "\\" not in letters:
        return letters
    try:
        return json.loads('"' + letters.replace("\\'", "'").replace('"', '\\"').replace('\\\\"', '\\"') + '"')
    except ValueError:
        return letters


@lru_cache(maxsize=2000)
def _number(token: str) -> int | float | str:
    """The number that a token spells; the token itself where it spells none. Forty characters hold any honest coordinate."""
    if len(token) > 40 or token[0].isalpha():  # float reads "nan" too
        return token
    try:
        return int(token)
    except ValueError:
        pass
    try:
        return float(token)
    except ValueError:
        return token


# ---- Qwen2-VL: <|object_ref_start|>label<|object_ref_end|><|box_start|>(x0,y0),(x1,y1)<|box_end|> ---------------------

_REF_START, _REF_END, _BOX_START, _BOX_END = (
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
)
_QWEN2_MARKS = re.compile(r"(<\|object_ref_start\|>|<\|object_ref_end\|>|<\|box_start\|>|<\|box_end\|>)")
_ANY_NUMBER = re.compile(_NUMBER)
EMPTY = "None"


@lru_cache(maxsize=2000)
def _numbers(text: str) -> tuple[int | float | str, ...]:
    return tuple(map(_number, _ANY_NUMBER.findall(text)))


def _write_qwen2_vl(rows: list[list[int]], labels: list[str]) -> str:
    parts = [
        f"{_REF_START}{label}{_REF_END}{_BOX_START}({x0},{y0}),({x1},{y1}){_BOX_END}"
        for (x0, y0, x1, y1), label in zip(rows, labels, strict=True)
    ]
    return "".join(parts) or EMPTY


def _parse_qwen2_vl(text: str) -> _Parsed:
    parsed = _Parsed()
    before, *rest = _QWEN2_MARKS.split(text)
    between, end, is_open = [before], len(before), False
    label, label_span = None, (0, 0)
    for mark, part in zip(rest[::2], rest[1::2], strict=True):
        span = (end + len(mark), end := end + len(mark) + len(part))
        opens = mark in (_REF_START, _BOX_START)
        if is_open and opens:  # the one before was never closed
            parsed.note("truncated")
        is_open = opens
        if mark == _REF_START:
            label, label_span = part, span
        elif mark == _BOX_START:
            parsed.objects.append((_numbers(part), label, Place(span, label_span)))
        else:
            between.append(part)
    if is_open:
        parsed.note("truncated")
        if mark == _BOX_START:
            parsed.objects.pop()
    return _finish_lines(text, parsed, "".join(between), 4, _write_qwen2_vl)


# ---- Click: <click>cx,cy</click> label, one a line ---------------------------------------------------------------------

_CLICK_START = "<click>"


def _write_click(rows: list[list[int]], labels: list[str]) -> str:
    return "\n".join(f"<click>{x},{y}</click> {label}" for (x, y), label in zip(rows, labels, strict=True)) or EMPTY


def _parse_click(text: str) -> _Parsed:
    parsed = _Parsed()
    before, *chunks = text.split(_CLICK_START)
    between, end = [before], len(before)
    for i, chunk in enumerate(chunks):
        start = end + len(_CLICK_START)
        end = start + len(chunk)
        point, closed, rest = chunk.partition("</click>")
        label, _, after = rest.partition("\n")
        if not closed or (i == len(chunks) - 1 and not label.strip()):
            parsed.note("truncated")
            continue
        label_start = start + len(point) + len(closed)
        place = Place((start, start + len(point)), (label_start, label_start + len(label)))
        parsed.objects.append((_numbers(point), label, place))
        between.append(after)
    return _finish_lines(text, parsed, "".join(between), 2, _write_click)


def _finish_lines(text: str, parsed: _Parsed, between: str, count: int, write) -> _Parsed:
    """Name what the two tag formats share: prose between objects, floats, odd spacing, nothing readable."""
    rows, labels = [values for values, _, _ in parsed.objects], [label for _, label, _ in parsed.objects]
    if any(float in map(type, row) for row in rows):
        parsed.note("float")
    if not parsed.objects and between.strip() == EMPTY and not parsed.problems:
        parsed.problems += ["spacing"] if text != EMPTY else []
        return parsed
    if not parsed.objects:
        parsed.note("unparsable")
        return parsed
    if between.strip():
        parsed.note("prose")
    readable = {*map(len, rows)} == {count} and None not in labels
    if not parsed.problems and readable and text != write(rows, [label.strip() for label in labels]):
        parsed.note("spacing")
    return parsed


_WRITERS = {"json": _write_json, "qwen2_vl": _write_qwen2_vl, "click": _write_click}
_PARSERS = {"json": _parse_json, "qwen2_vl": _parse_qwen2_vl, "click": _parse_click}


CODECS = {
    codec.name: codec
    for codec in (
        *(Codec(family.name, family.syntax, Frame(family.coordinate_steps)) for family in FAMILIES.values()),
        *(Codec(f"{family.name}_click", "click", Frame(family.coordinate_steps)) for family in FAMILIES.values()),
    )
}
