"""Click answers: <click>x,y</click> cat, one object per line. JSON with "point_2d" is read too."""

from boxtune.answers.syntaxes import json_boxes
from boxtune.answers.syntaxes.json_objects import BOX_KEYS
from boxtune.answers.syntaxes.parsed import Parsed, ParsedObject, Place, read_numbers
from boxtune.answers.syntaxes.tagged import NO_OBJECTS, finish

_START, _END = "<click>", "</click>"


def write(rows: list[list[int]], labels: list[str]) -> str:
    lines = [f"{_START}{x},{y}{_END} {label}" for (x, y), label in zip(rows, labels, strict=True)]
    return "\n".join(lines) or NO_OBJECTS


def parse(text: str) -> Parsed:
    """A label ends with its line. An object is truncated if it has no end tag."""
    point_key = BOX_KEYS[1]
    if _START not in text and point_key in text:
        parsed = json_boxes.parse(text, point_key)
        parsed.problems.insert(0, "spacing")
        return parsed
    parsed = Parsed()
    before, *chunks = text.split(_START)
    outside, position = [before], len(before)
    for chunk in chunks:
        start = position + len(_START)
        position = start + len(chunk)
        point, end_tag, rest = chunk.partition(_END)
        label, _, after = rest.partition("\n")
        label, fence, _ = label.partition("```")
        if not end_tag:
            parsed.note("truncated")
            continue
        point_end = start + len(point)
        label_start = point_end + len(end_tag)
        place = Place((start, point_end), (label_start, label_start + len(label)))
        parsed.objects.append(ParsedObject(read_numbers(point), label.strip() or None, place))
        outside.append(fence + after)
    return finish(parsed, text, "".join(outside), 2, write)
