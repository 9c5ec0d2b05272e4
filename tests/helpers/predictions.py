"""Predictions of one cat per image, made in memory."""

import json

from boxtune.answers.predictions import make_prediction
from boxtune.data.questions import turns_for

CAT = '[{"bbox_2d": [56, 28, 112, 56], "label": "cat"}]'


def cat_record(name="a", width=640, height=480):
    objects = {"bbox": [[128, 48, 256, 96]], "category": ["cat"], "ignore": [False]}
    return {
        "id": name,
        "image": f"{name}.jpg",
        "width": width,
        "height": height,
        "objects": objects,
        "messages": turns_for(["cat"]),
    }


def cat_prediction(name="a", text=CAT, **changes):
    return make_prediction(cat_record(name), "qwen2_5_vl", (280, 280), text, 0.5) | changes


def write_lines(path, *lines):
    """A JSONL file of strings, which are written as they are, and JSON values."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path
