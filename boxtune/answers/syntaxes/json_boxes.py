"""JSON answers: [{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}, …].

`parse` accepts code fences, prose, missing quotes, other quotes and colons, any order of keys and a truncated end, and names
what it accepted in the problems. It never guesses a missing number or label. json_objects.py finds the objects, in well-formed
text and in any other, so that they are the same with anything around them.
"""

import json
import re
from collections.abc import Sequence

from boxtune.answers.syntaxes.json_objects import (
    BOX_KEYS,
    CAPTION,
    LABEL,
    OBJECT_START,
    TO_ASCII,
    scan_braces,
    usual_object,
)
from boxtune.answers.syntaxes.parsed import FENCE, Parsed, ParsedObject

_EMPTY_ITEM = re.compile(r"[\[,]\s*+\{\}")
# Not int[] and not "[]", which is a string.
_EMPTY_LIST = re.compile(r"(?<![\w\"'])\[\s*+\](?![\w\"'])")


def write(rows: list[list[int]], labels: list[str]) -> str:
    objects = [{BOX_KEYS[0]: row, LABEL: label} for row, label in zip(rows, labels, strict=True)]
    return json.dumps(objects, ensure_ascii=False)


def write_captioned(rows: list[list[int]], labels: list[str], captions: Sequence[str | None]) -> str:
    """As `write`, with the caption of each object after its label; an object without one has no such key."""
    objects = [
        {BOX_KEYS[0]: row, LABEL: label} | ({CAPTION: caption} if caption else {})
        for row, label, caption in zip(rows, labels, captions, strict=True)
    ]
    return json.dumps(objects, ensure_ascii=False)


def parse(text: str, box_key: str = BOX_KEYS[0]) -> Parsed:
    """The objects whose coordinates stand under `box_key`."""
    parsed = Parsed()
    if FENCE.search(text):
        parsed.note("fence")
    outside: list[str] = []  # the text before, between and after the objects
    without_box = 0
    has_empty_list = False
    position = 0
    while opening := OBJECT_START.search(text, position):
        start = opening.start()
        outside.append(text[position:start])
        if box_key == BOX_KEYS[0] and (usual := usual_object(text, start)):
            parsed.objects.append(usual[0])
            position = usual[1]
            continue
        before = outside[-1].rstrip()
        in_list = before.endswith(("[", ",", "［", "，")) if before else position > 0 or not start
        scanned = scan_braces(text, start, box_key, in_list)
        position = scanned.end
        for found in scanned.objects:
            if found:
                parsed.objects.append(found)
            else:
                without_box += 1
        for problem in scanned.problems:
            parsed.note(problem)
        has_empty_list |= scanned.is_empty_list
    outside.append(text[position:])
    around = FENCE.sub("", "".join(outside)).translate(TO_ASCII)
    _judge(parsed, text, box_key, around, without_box, has_empty_list)
    return parsed


def _judge(parsed: Parsed, text: str, box_key: str, around: str, without_box: int, has_empty_list: bool) -> None:
    """Note the problems that concern the whole response.

    around: the text outside all braces. without_box: the number of objects without a box. has_empty_list: an empty list stands
    in braces.
    """
    without_box += len(_EMPTY_ITEM.findall(around))
    around = around.replace("{}", "")
    if "{" in around or around.rfind("[") > around.rfind("]"):
        parsed.note("truncated")
    parsed.problems += ["bad_box"] * without_box
    if re.search(r"[^\s,\[\]{]", around):
        parsed.note("prose")
    if parsed.objects:
        if not parsed.problems and _differs_in_spacing(text, parsed.objects, box_key):
            parsed.note("spacing")
        return
    rest, empty_lists = _EMPTY_LIST.subn("", around)
    # Any other bracket may be an answer that could not be read.
    is_empty_list = (empty_lists or has_empty_list) and not without_box and not re.search(r"[\[\]{}]", rest)
    if not is_empty_list or "truncated" in parsed.problems:
        parsed.problems = ["truncated", "unparsable"] if "truncated" in parsed.problems else ["unparsable"]
    elif not parsed.problems and text != "[]":
        parsed.note("spacing")


def _differs_in_spacing(text: str, objects: list[ParsedObject], box_key: str) -> bool:
    """Whether json.dumps would write the same answer otherwise. A broken object has a problem of its own."""
    written = json.dumps([{box_key: found.values, LABEL: found.label} for found in objects], ensure_ascii=False)
    if text == written or any(map(_is_broken, objects)):
        return False
    try:
        return json.dumps(json.loads(text), ensure_ascii=False) != text  # with further keys
    except (ValueError, RecursionError):
        return True


def _is_broken(found: ParsedObject) -> bool:
    return not found.values or found.label == "" or any(isinstance(value, str) for value in found.values)
