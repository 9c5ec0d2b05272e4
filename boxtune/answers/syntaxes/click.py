"""Click answers: <click>x,y</click> cat, one object per line."""

from boxtune.answers.syntaxes.parsed import Parsed, ParsedObject, Place, read_numbers
from boxtune.answers.syntaxes.tagged import NO_OBJECTS, finish

_START, _END = "<click>", "</click>"


def write(rows: list[list[int]], labels: list[str]) -> str:
    lines = [f"{_START}{x},{y}{_END} {label}" for (x, y), label in zip(rows, labels, strict=True)]
    return "\n".join(lines) or NO_OBJECTS


def parse(text: str) -> Parsed:
    """A label ends with its line. The last object is truncated if it has no end tag or no label."""
    parsed = Parsed()
    before, *chunks = text.split(_START)
    outside, position = [before], len(before)
    for i, chunk in enumerate(chunks):
        start = position + len(_START)
        position = start + len(chunk)
        point, end_tag, rest = chunk.partition(_END)
        label, _, after = rest.partition("\n")
        is_last = i == len(chunks) - 1
        if not end_tag or (is_last and not label.strip()):
            parsed.note("truncated")
            continue
        point_end = start + len(point)
        label_start = point_end + len(end_tag)
        place = Place((start, point_end), (label_start, label_start + len(label)))
        parsed.objects.append(ParsedObject(read_numbers(point), label, place))
        outside.append(after)
    return finish(parsed, text, "".join(outside), 2, write)
