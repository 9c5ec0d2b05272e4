"""Qwen2-VL's answers: <|object_ref_start|>cat<|object_ref_end|><|box_start|>(x0,y0),(x1,y1)<|box_end|>, one after another."""

import re

from boxtune.answers.syntaxes.parsed import Parsed, ParsedObject, Place, read_numbers
from boxtune.answers.syntaxes.tagged import NO_OBJECTS, finish

_LABEL_START, _LABEL_END = "<|object_ref_start|>", "<|object_ref_end|>"
_BOX_START, _BOX_END = "<|box_start|>", "<|box_end|>"
_TAG = re.compile("(" + "|".join(map(re.escape, (_LABEL_START, _LABEL_END, _BOX_START, _BOX_END))) + ")")


def write(rows: list[list[int]], labels: list[str]) -> str:
    objects = [
        f"{_LABEL_START}{label}{_LABEL_END}{_BOX_START}({x0},{y0}),({x1},{y1}){_BOX_END}"
        for (x0, y0, x1, y1), label in zip(rows, labels, strict=True)
    ]
    return "".join(objects) or NO_OBJECTS


def parse(text: str) -> Parsed:
    """Each box has the label before it. An opening tag that follows another without an end tag means a truncated part."""
    parsed = Parsed()
    before, *tags_and_contents = _TAG.split(text)
    outside, position = [before], len(before)
    label, label_span = None, (0, 0)
    open_tag = None
    for tag, content in zip(tags_and_contents[::2], tags_and_contents[1::2], strict=True):
        start = position + len(tag)
        position = start + len(content)
        if tag in (_LABEL_END, _BOX_END):
            outside.append(content)
            open_tag = None
            continue
        if open_tag:
            parsed.note("truncated")
        open_tag = tag
        if tag == _LABEL_START:
            label, label_span = content, (start, position)
        else:
            place = Place((start, position), label_span)
            parsed.objects.append(ParsedObject(read_numbers(content), label, place))
    if open_tag:
        parsed.note("truncated")
        if open_tag == _BOX_START:
            parsed.objects.pop()
    return finish(parsed, text, "".join(outside), 4, write)
