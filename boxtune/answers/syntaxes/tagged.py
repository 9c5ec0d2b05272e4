"""What the two syntaxes with tags (Qwen2-VL and click) share."""

import re
from collections.abc import Callable
from typing import Any

from boxtune.answers.syntaxes.parsed import FENCE, Parsed

NO_OBJECTS = "None"  # the response for an image without objects
_COORDINATES = re.compile(r"[(\[{<]\s*+\d")


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
    outside, fences = FENCE.subn("", outside)
    if not rows:
        return _finish_empty(parsed, text, outside, fences > 0)
    if fences:
        parsed.note("fence")
    if outside.strip():
        parsed.note("prose")
    can_be_written = all(len(row) == count for row in rows) and None not in labels
    if not parsed.problems and can_be_written and text != write(rows, [str(label).strip() for label in labels]):
        parsed.note("spacing")
    return parsed


def _finish_empty(parsed: Parsed, text: str, outside: str, has_fence: bool) -> Parsed:
    """A response without objects: an empty answer if one of its lines says so, and no other seems to hold coordinates."""
    if text == NO_OBJECTS:
        return parsed
    lines = [line.strip() for line in outside.strip().split("\n")]
    if parsed.problems or NO_OBJECTS not in lines or _COORDINATES.search(outside):
        parsed.note("unparsable")
        return parsed
    if has_fence:
        parsed.note("fence")
    if any(line not in (NO_OBJECTS, "") for line in lines):
        parsed.note("prose")
    if not parsed.problems and text != NO_OBJECTS:
        parsed.note("spacing")
    return parsed
