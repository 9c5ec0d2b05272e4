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
from dataclasses import dataclass, field

# What a parser may report. Text problems appear once per answer, object problems once per object.
TEXT_PROBLEMS = ("fence", "prose", "spacing", "quotes", "float", "key_order", "truncated", "unparsable")
OBJECT_PROBLEMS = ("bad_box", "bad_label", "clipped")


@dataclass(frozen=True)
class Place:
    """Where an object stands in the text of an answer: (start, end) of its numbers and of its label, in characters."""

    numbers: tuple[int, int]
    label: tuple[int, int]


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

    objects: list[tuple[list, object, Place | None]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


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


THOUSANDTHS, INPUT_PIXELS = Frame(steps=1000), Frame(steps=None)


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
        extents = self.frame.extent(input_size)
        height, width = image_size
        answer = Answer(problems=list(dict.fromkeys(parsed.problems)))
        for values, label, place in parsed.objects:
            count = 2 if self.is_click else 4
            if len(values) != count or not all(_is_finite_number(value) for value in values):
                answer.problems.append("bad_box")
                continue
            if not isinstance(label, str) or not label.strip():
                answer.problems.append("bad_label")
                continue
            inside = [min(max(value, 0), extents[i % 2]) for i, value in enumerate(values)]
            pixels = [
                value * size / extent
                for value, size, extent in zip(inside, (width, height) * 2, extents * 2, strict=False)
            ]
            if not self.is_click and (pixels[2] <= pixels[0] or pixels[3] <= pixels[1]):
                answer.problems.append("bad_box")
                continue
            if inside != list(values):
                answer.problems.append("clipped")
            (answer.points_xy if self.is_click else answer.boxes_xyxy).append(pixels)
            answer.labels.append(label.strip())
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
_NUMBER = r"[-+]?\d[\d.eE+-]*+|[-+]?\.\d[\d.eE+-]*+"
# Strings run to their own quote, or to the end of the line where it is missing, so that no start is ever scanned twice.
# A quote inside a label closes it only where a value may end.
_TOKEN = re.compile(
    r"(?P<string>\"(?:[^\"\\\n]|\\.|\"(?!\s*+[,:}\]]))*+\"?|'(?:[^'\\\n]|\\.|'(?!\s*+[,:}\]]))*+'?)"
    rf"|(?P<number>{_NUMBER})|(?P<mark>[{{}}\[\]:,])|(?P<word>[A-Za-z_]\w*+)|\s++|."
)

# What the tokens would tell as well, but too slowly for a million characters: the "{" of objects that end at the next "{";
# objects without strings or others inside that are empty or begin with a word; and what nearly every object is.
_TORN = re.compile(r"(?:\{\s*+(?=\{))++")
_BARE = re.compile(r"\{[^{}\"'\dA-Za-z_]*+([A-Za-z_][^{}\"']*+|)\}")
_INTEGER = r"\s*+([0-9]{1,9}+)\s*+"
_USUAL = re.compile(
    rf"\{{\"bbox_2d\":\s*+\[({_INTEGER},{_INTEGER},{_INTEGER},{_INTEGER})\],\s*+\"label\":\s*+\"([^\"\\\n]*+)\"\}}"
)

# The numbers of a box and the letters of its label, quotes left out.
_NUMBERS = re.compile(r"""\bbbox_2d["']?\s*+:\s*+\[([^\[\]{}]*+)\]""")
_LABEL = re.compile(r"""\blabel["']?\s*+:\s*+["']((?:[^"'\\\n]|\\.|["'](?!\s*+[,}]))*+)["']""")


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
        return _scan_json(text)
    parsed = _Parsed()
    for item, place in zip(items, _json_places(text, len(items)), strict=True):
        values = item["bbox_2d"]
        parsed.objects.append((values if isinstance(values, list) else [], item.get("label"), place))
        if isinstance(values, list) and any(isinstance(value, float) for value in values):
            parsed.problems.append("float")
        if list(item)[:2] != ["bbox_2d", "label"]:
            parsed.problems.append("key_order")
    if body[end:].strip():
        parsed.problems.append("prose")
    if not parsed.problems and text != canonical:
        parsed.problems.append("spacing")
    return parsed


def _scan_json(text: str) -> _Parsed:
    """One pass over the tokens that collects every complete {…} which holds a bbox_2d."""
    parsed = _Parsed()
    if _FENCE.search(text):
        parsed.problems.append("fence")
    position, outside = 0, []
    open_object, torn = False, False
    while (start := text.find("{", position)) >= 0:
        outside.append(text[position:start])
        open_object = False
        if usual := _USUAL.match(text, start):
            position = usual.end()
            parsed.objects.append(([*map(int, usual.groups()[1:5])], usual[6], Place(usual.span(1), usual.span(6))))
        elif (bare := _BARE.match(text, start)) and "bbox_2d" not in bare[1]:
            position = bare.end()
            if bare[1]:
                parsed.problems.append("quotes")
        elif ends := _TORN.match(text, start):
            position, torn = ends.end(), True
        else:
            tokens, position, closed = _object_tokens(text, start + 1)
            open_object = not closed
            torn = torn or open_object
            if closed:
                _read_object(tokens, _json_place(text, start, position), parsed)
    tail = text[position:]
    outside.append("" if open_object else tail)
    around = _FENCE.sub("", "".join(outside))
    if torn or ("[" in around and "]" not in around):
        parsed.problems.append("truncated")
    empty_list = not parsed.objects and re.sub(r"\s+", "", around) == "[]"
    if re.search(r"[^\s,\[\]]", around):
        parsed.problems.append("prose")
    if not parsed.objects and not empty_list and not parsed.problems.count("bad_box"):
        parsed.problems = ["unparsable"] if "truncated" not in parsed.problems else ["truncated", "unparsable"]
    elif not parsed.problems:
        parsed.problems.append("spacing")
    return parsed


def _object_tokens(text: str, position: int) -> tuple[list[tuple[str, str]], int, bool]:
    """Tokens up to the closing brace: (tokens, where to go on, whether it closed).

    A "{" that is no value ends a torn object; what a nested object holds is skipped.
    """
    tokens, depth = [], 1
    for match in _TOKEN.finditer(text, position):
        kind, value = match.lastgroup, match.group()
        if kind == "mark" and value == "}":
            depth -= 1
            if depth == 0:
                return tokens, match.end(), True
        elif kind == "mark" and value == "{":
            if depth == 1 and (not tokens or tokens[-1][1] != ":"):
                return tokens, match.start(), False
            depth += 1
        elif kind and depth == 1:
            tokens.append((kind, value))
    return tokens, len(text), False


def _json_places(text: str, count: int) -> list[Place | None]:
    """The places of the `count` objects of a well-formed list."""
    places, position = [], 0
    while (start := text.find("{", position)) >= 0:
        _, position, _ = _object_tokens(text, start + 1)
        places.append(_json_place(text, start, position))
    return places if len(places) == count else [None] * count


def _json_place(text: str, start: int, end: int) -> Place | None:
    numbers, label = _NUMBERS.search(text, start, end), _LABEL.search(text, start, end)
    return Place(numbers.span(1), label.span(1)) if numbers and label else None


def _read_object(tokens: list[tuple[str, str]], place: Place | None, parsed: _Parsed) -> None:
    fields: dict[str, object] = {}
    key, values = None, None
    for i, (kind, value) in enumerate(tokens):
        following = tokens[i + 1][1] if i + 1 < len(tokens) else ""
        if kind in {"string", "word"} and following == ":" and values is None:
            key = _unquote(value) if kind == "string" else value
        elif kind == "mark":
            if value == "[":
                values = []
            elif value == "]" and values is not None:
                fields.setdefault(key, values)
                values = None
        elif values is not None:
            values.append(_number(value) if kind == "number" else value)
        elif key is not None:
            fields.setdefault(key, _unquote(value) if kind == "string" else value)
        if kind == "word" or (kind == "string" and value[0] == "'"):
            parsed.problems.append("quotes")
    if "bbox_2d" not in fields:
        return
    numbers = fields["bbox_2d"] if isinstance(fields["bbox_2d"], list) else []
    if any(isinstance(number, float) for number in numbers):
        parsed.problems.append("float")
    if list(fields)[:2] != ["bbox_2d", "label"]:
        parsed.problems.append("key_order")
    parsed.objects.append((numbers, fields.get("label"), place))


def _unquote(text: str) -> str:
    body = text[1:-1] if len(text) > 1 and text[-1] == text[0] else text[1:]
    if "\\" not in body:
        return body
    try:
        return json.loads('"' + body.replace("\\'", "'").replace('"', '\\"').replace('\\\\"', '\\"') + '"')
    except ValueError:
        return body


def _number(text: str) -> int | float | str:
    """The number that a token spells; the token itself where it spells none. Forty characters hold any honest coordinate."""
    if len(text) > 40:
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


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


def _write_qwen2_vl(rows: list[list[int]], labels: list[str]) -> str:
    parts = [
        f"{_REF_START}{label}{_REF_END}{_BOX_START}({x0},{y0}),({x1},{y1}){_BOX_END}"
        for (x0, y0, x1, y1), label in zip(rows, labels, strict=True)
    ]
    return "".join(parts) or EMPTY


def _parse_qwen2_vl(text: str) -> _Parsed:
    parsed = _Parsed()
    label, inside, between, end = None, None, [], 0
    label_span = (0, 0)
    for part in _QWEN2_MARKS.split(text):
        span = (end, end := end + len(part))
        if part in {_REF_START, _BOX_START}:
            if inside is not None:  # the one before was never closed
                parsed.problems.append("truncated")
            inside = part
            label = None if part == _REF_START else label
        elif part in {_REF_END, _BOX_END}:
            inside = None
        elif inside == _REF_START:
            label, label_span = part, span
        elif inside == _BOX_START:
            numbers = [_number(match) for match in _ANY_NUMBER.findall(part)]
            parsed.objects.append((numbers, label, Place(span, label_span)))
        else:
            between.append(part)
    if inside is not None:
        parsed.problems.append("truncated")
        if inside == _BOX_START:
            parsed.objects.pop()
    return _finish_lines(text, parsed, "".join(between), _write_qwen2_vl)


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
            parsed.problems.append("truncated")
            continue
        label_start = start + len(point) + len(closed)
        place = Place((start, start + len(point)), (label_start, label_start + len(label)))
        parsed.objects.append(([_number(match) for match in _ANY_NUMBER.findall(point)], label, place))
        between.append(after)
    return _finish_lines(text, parsed, "".join(between), _write_click)


def _finish_lines(text: str, parsed: _Parsed, between: str, write) -> _Parsed:
    """Name what the two tag formats share: prose between objects, floats, odd spacing, nothing readable."""
    if any(isinstance(value, float) for values, *_ in parsed.objects for value in values):
        parsed.problems.append("float")
    if not parsed.objects and between.strip() == EMPTY and not parsed.problems:
        parsed.problems += ["spacing"] if text != EMPTY else []
        return parsed
    if not parsed.objects:
        parsed.problems.append("unparsable")
        return parsed
    if between.strip():
        parsed.problems.append("prose")
    readable = all(isinstance(label, str) and len(values) in {2, 4} for values, label, _ in parsed.objects)
    if (
        not parsed.problems
        and readable
        and text != write([list(v) for v, *_ in parsed.objects], [label.strip() for _, label, _ in parsed.objects])
    ):
        parsed.problems.append("spacing")
    return parsed


_WRITERS = {"json": _write_json, "qwen2_vl": _write_qwen2_vl, "click": _write_click}
_PARSERS = {"json": _parse_json, "qwen2_vl": _parse_qwen2_vl, "click": _parse_click}

CODECS = {
    codec.name: codec
    for codec in (
        Codec("qwen2_vl", "qwen2_vl", THOUSANDTHS),
        Codec("qwen2_5_vl", "json", INPUT_PIXELS),
        Codec("qwen3_vl", "json", THOUSANDTHS),
        Codec("qwen2_vl_click", "click", THOUSANDTHS),
        Codec("qwen2_5_vl_click", "click", INPUT_PIXELS),
        Codec("qwen3_vl_click", "click", THOUSANDTHS),
    )
}
BOX_CODECS = [name for name in CODECS if not name.endswith("_click")]
