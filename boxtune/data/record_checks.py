"""Validation of records and of dataset.json. Every function returns problems as text for the user; it raises nothing."""

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from boxtune.common.errors import shown
from boxtune.common.problems import Problem, join_names
from boxtune.data.images import aspect_problem
from boxtune.data.records import PLACEHOLDER, SPLITS

# No image format allows a longer side (PNG's limit).
_MAX_SIDE = 2**31

_RECORD_KEYS = ("id", "image", "width", "height", "objects", "messages")
_KEYS_IN_MEMORY = ("cut_from", "taught_by")

# What a class name must not contain, because it could not be written into an answer and read back: line breaks and other
# control characters, lone surrogates, special tokens, and the placeholders for the image and for boxes.
_FORBIDDEN_IN_LABEL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|<\||<click>|<image>|<boxes[:>]")

# Tokens that start or end a turn or an image in every Qwen family, and virtual tokens. The tokenizer would read them as such
# inside the text of a turn too. Lone surrogates cannot be tokenized.
_FORBIDDEN_IN_TURN = re.compile(r"<\|(?:im_|endoftext|vision_|image_|video_|soft_prompt_)|[\ud800-\udfff]")


def label_problem(label: object) -> str | None:
    """Why a class name cannot be written into an answer, or None."""
    return _name_problem(label) if isinstance(label, str) else f"class name {shown(label)} is not a string"


@lru_cache(maxsize=10_000)  # a split holds few names many times
def _name_problem(label: str) -> str | None:
    if not label.strip():
        return f"class name {shown(label)} is empty"
    if label != label.strip():
        return f"class name {shown(label)} has space around it"
    if found := _FORBIDDEN_IN_LABEL.search(label):
        return f"class name {shown(label)} holds {found.group()!r}, part of a special token or a control character"
    return None


def caption_problem(caption: object) -> str | None:
    """Why an object's caption cannot be written into an answer, or None. An object may have none."""
    if caption is None or (isinstance(caption, str) and not breaks_turns(caption)):
        return None
    reason = "holds a special token or a lone surrogate" if isinstance(caption, str) else "is no text"
    return f"caption {shown(caption)} {reason}"


def description_problems(descriptions: dict[Any, Any], classes: list[str]) -> list[str]:
    """What is wrong with {class: description}: unknown classes, and texts that no question can hold."""
    problems = []
    for name, text in descriptions.items():
        if name not in classes:
            problems.append(f"descriptions: unknown class {shown(name)}; known: {join_names(map(str, classes))}")
        elif not isinstance(text, str) or not text or text != text.strip():
            problems.append(f"descriptions: {name}: {shown(text)} must be a text without space around it")
        elif found := _FORBIDDEN_IN_LABEL.search(text):
            problems.append(
                f"descriptions: {name}: {shown(text)} holds {found.group()!r}, part of a special token or a control character"
            )
    return problems


@lru_cache(maxsize=1_000)  # a split asks few questions many times
def breaks_turns(text: str) -> bool:
    """Whether `text`, as part of a conversation, would end its turn or stand for an image once it is tokenized."""
    return "<image>" in text or _FORBIDDEN_IN_TURN.search(text) is not None


def record_problems(record: Any) -> list[str]:
    """Everything that is wrong with one record; an empty list for a valid one.

    A wrong type, size or set of keys is reported alone, because the remaining checks depend on it.
    """
    if problem := _keys_problem(record):
        return [problem]
    if problem := _identity_problem(record):
        return [problem]
    name = record["id"]
    if problem := _size_problem(record["width"], record["height"]) or _columns_problem(record["objects"]):
        return [Problem(name, problem)]
    found = [
        *_object_problems(record["objects"], record["width"], record["height"]),
        *_message_problems(record["messages"], record["objects"]["category"]),
    ]
    return [Problem(name, problem) for problem in found]


def _keys_problem(record: Any) -> str | None:
    if not isinstance(record, dict):
        return f"a line must be a JSON object, got {type(record).__name__}"
    name = shown(record.get("id", "?"))
    if missing := [key for key in _RECORD_KEYS if key not in record]:
        return Problem(name, f"missing {', '.join(missing)}")
    if reserved := [key for key in _KEYS_IN_MEMORY if key in record]:
        return Problem(name, f"the key {reserved[0]} exists in memory only; rename it")
    return None


def _identity_problem(record: dict[str, Any]) -> str | None:
    name, image = record["id"], record["image"]
    if not isinstance(name, str) or not isinstance(image, str):
        return f"id {shown(name)} and image {shown(image)} must be strings"
    return f"id {shown(name)} cannot name a file" if not name or "\0" in name else None


def _size_problem(width: Any, height: Any) -> str | None:
    if not all(type(side) is int and 0 < side < _MAX_SIDE for side in (width, height)):
        return f"width {shown(width)} and height {shown(height)} must be positive integers"
    return aspect_problem(width, height)


def _columns_problem(objects: Any) -> str | None:
    """What is wrong with `objects` as parallel lists."""
    required = ("bbox", "category", "ignore")
    if (
        not isinstance(objects, dict)
        or not all(key in objects for key in required)
        or not all(isinstance(column, list) for column in objects.values())
    ):
        return "objects must hold the lists bbox, category and ignore"
    lengths = {key: len(column) for key, column in objects.items()}
    return f"the lists in objects differ in length: {lengths}" if len(set(lengths.values())) > 1 else None


def _object_problems(objects: dict[str, list[Any]], width: int, height: int) -> list[str]:
    problems = [problem for label in objects["category"] if (problem := label_problem(label))]
    problems += [f"ignore {shown(value)} must be true or false" for value in objects["ignore"] if value not in (0, 1)]
    problems += [
        f"area {shown(area)} must be a number of square pixels, or null if unknown"
        for area in objects.get("area", [])
        if area is not None and not is_area(area)
    ]
    problems += [
        f"bbox {shown(box)} is not [x0, y0, x1, y1] inside {width} × {height}"
        for box in objects["bbox"]
        if not _is_box_inside(box, width, height)
    ]
    return problems


def is_area(value: object) -> bool:
    """Whether a value can be an object's `area`: a finite number, 0 or more."""
    return type(value) in (int, float) and 0 <= value < _MAX_SIDE**2  # type: ignore[operator]  # false for NaN, too


def _is_box_inside(box: Any, width: int, height: int) -> bool:
    """Written out, because a split may hold hundreds of thousands of boxes."""
    if type(box) is not list or len(box) != 4:
        return False
    x0, y0, x1, y1 = box
    number = (int, float)
    if type(x0) not in number or type(y0) not in number or type(x1) not in number or type(y1) not in number:
        return False
    return bool(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height)  # false for NaN, too


def _message_problems(turns: Any, labels: list[Any]) -> list[str]:
    """What is wrong with the conversation about objects labeled `labels`."""
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn for turn in turns
    ):
        return ["messages must be a list of objects with role and content, both strings"]
    if not turns or [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        return ["messages must alternate between user and assistant, user first and assistant last"]
    texts = [turn["content"] for turn in turns]
    if sum(text.count("<image>") for text in texts) != 1 or "<image>" not in texts[0]:
        return ["messages must contain <image> once, in the first question"]
    if any(breaks_turns(text.replace("<image>", "")) for text in texts):
        return ["messages contain a special token that ends a turn or stands for an image, or a lone surrogate"]
    names = [label for label in labels if isinstance(label, str)]  # others are reported as labels
    return [problem for answer in texts[1::2] if (problem := _placeholder_problem(answer, names))]


def _placeholder_problem(answer: str, labels: list[str]) -> str | None:
    """What is wrong with an answer that seems to stand for the objects labeled `labels`, or None."""
    placeholder = PLACEHOLDER.fullmatch(answer)
    category = placeholder.group(1) if placeholder else None
    if not placeholder or (category and label_problem(category)):
        if re.search(r"<boxes[:>]", answer):
            return f"{shown(answer)}: <boxes> and <boxes:NAME> must be the whole answer"
        return None
    if category and category not in labels:
        similar = [label for label in labels if label.casefold() == category.casefold()]
        if similar:
            return f"{shown(answer)}: no object has this label, but there is {shown(similar[0])}"
    return None


def info_problems(info: Any) -> list[str]:
    """Everything that is wrong with the content of dataset.json."""
    if not isinstance(info, dict):
        return [f"must hold a JSON object, got {type(info).__name__}"]
    types = {"name": str, "format": str, "classes": list, "splits": dict, "problems": dict}
    type_names = {str: "a string", list: "a list", dict: "an object"}
    problems = [
        f"{key}: {info.get(key)!r} must be {type_names[kind]}"
        for key, kind in types.items()
        if not isinstance(info.get(key), kind)
    ]
    if problems:
        return problems
    if not info["classes"]:
        problems.append("classes: must name at least one class")
    names = Counter(name for name in info["classes"] if isinstance(name, str))
    problems += [f"classes: {shown(name)} is named {count} times" for name, count in names.items() if count > 1]
    problems += [problem for label in info["classes"] if (problem := label_problem(label))]
    described = info.get("descriptions", {})
    if isinstance(described, dict):
        problems += description_problems(described, info["classes"])
    else:
        problems.append(f"descriptions: {shown(described)} must be an object")
    for split, counts in info["splits"].items():
        problems += _split_problems(split, counts)
    problems += [
        f"problems: {kind}: {count!r} must be a count"
        for kind, count in info["problems"].items()
        if type(count) is not int
    ]
    return problems


def _split_problems(split: str, counts: Any) -> list[str]:
    """What is wrong with one entry of `splits` in dataset.json."""
    problems = [] if split in SPLITS else [f"splits: {split!r} must be one of {', '.join(SPLITS)}"]
    keys = ("images", "objects", "empty")
    if not isinstance(counts, dict) or not all(isinstance(counts.get(key), int) for key in keys):
        problems.append(f"splits: {split}: {counts!r} must hold the counts images, objects and empty")
    return problems
