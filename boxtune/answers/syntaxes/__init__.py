"""The answer syntaxes by name. To add one: a file here with `write` and `parse`, a line below, and its test."""

from boxtune.answers.syntaxes import click, json_boxes, qwen2_vl
from boxtune.answers.syntaxes.parsed import Syntax

SYNTAXES: dict[str, Syntax] = {"json_boxes": json_boxes, "qwen2_vl": qwen2_vl, "click": click}
