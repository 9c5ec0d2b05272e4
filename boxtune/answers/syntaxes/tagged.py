"""What the two syntaxes with tags (Qwen2-VL and click) share."""

from collections.abc import Callable
from typing import Any

from boxtune.answers.syntaxes.parsed import Parsed

NO_OBJECTS = "None"  # the response for an image without objects


def finish(parsed: Parsed, text: str, outside: str, count: int, write: Callable[[list[Any], list[str]], str]) -> Parsed:
    """Note the problems that concern the whole response.

    outside: the text outside all tags.
    count: how many numbers an object has.
    write: how the syntax writes objects. If it would write the same objects differently, the problem is "spacing".
    """
    rows = [found.values for found in parsed.objects]
    labels = [found.label for found in parsed.objects]
    if any(isinstance(number, float) for row in rows for number in row):
        parsed.note("float")
    if not rows and outside.strip() == NO_OBJECTS and not parsed.problems:
        if text != NO_OBJECTS:
            parsed.note("spacing")
        return parsed
    if not rows:
        parsed.note("unparsable")
        return parsed
    if outside.strip():
        parsed.note("prose")
    can_be_written = all(len(row) == count for row in rows) and None not in labels
    if not parsed.problems and can_be_written and text != write(rows, [str(label).strip() for label in labels]):
        parsed.note("spacing")
    return parsed
