"""Reading and validating predictions.jsonl, which another program may have written."""

from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from boxtune.answers.codecs import CODECS
from boxtune.answers.confidence import RANKINGS
from boxtune.answers.decoding import TEXT
from boxtune.answers.gate import GATED
from boxtune.answers.noise import NOISE_LABEL
from boxtune.answers.parts import make_part, merge_parts
from boxtune.answers.predictions import (
    KEYS,
    KEYS_WITH_PARTS,
    PART_KEYS,
    Part,
    Prediction,
    empty_prediction,
    make_prediction,
    place_column,
)
from boxtune.answers.selection import LOW_SCORE, SUPPRESSED
from boxtune.common.errors import UserError, shown
from boxtune.common.garbage import collector_paused
from boxtune.common.json_lines import BadLine, read_json_lines
from boxtune.common.problems import Problem
from boxtune.data.questions import asked_classes, first_question, named_class
from boxtune.data.records import CAPTION, Record, with_objects
from boxtune.data.tiles import cut

# Coordinates and sizes are smaller. JSON may hold integers that are too large for a float. NaN and infinity fail the
# comparison, too.
LIMIT = 1e12
_NUMBERS = (int, float)  # what JSON holds; True is no number


@collector_paused()
def read_predictions(
    path: str | Path,
    records: list[Record],
    *,
    allow_missing: bool = False,
    reparse: bool = False,
    classes: Sequence[str] = (),
) -> tuple[list[Prediction], list[str]]:
    """(predictions in the order of `records`, ids that have no line in the file).

    allow_missing: a missing id counts as an empty response with the problem "missing" instead of being an error.
    reparse: `text` is read again by the line's own codec. Scores are kept if that gives the same objects; otherwise they are
        1.0.
    classes: those of the dataset, which reading `text` again needs.

    Raises UserError that lists every bad line and every unknown, duplicate or missing id.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist. To create predictions: evaluate.py --ckpt DIR --data DIR")
    by_id = {record["id"]: record for record in records}
    found: dict[str, Prediction] = {}
    problems: list[str] = []
    for number, line in read_json_lines(path):
        problems += [Problem(f"line {number}", problem) for problem in _line_problems(line, by_id, found, reparse)]
        if isinstance(line, dict) and isinstance(line.get("id"), str):
            found.setdefault(line["id"], line)  # type: ignore[arg-type]  # bad lines are listed in `problems`
    if found and not found.keys() & by_id.keys():
        raise UserError(
            f"{path}: none of the {len(found)} predictions belongs to this split. Check --data and --split."
        )
    missing = [name for name in by_id if name not in found]
    if not allow_missing:
        problems += [Problem(name, "no prediction; predict it, or use --allow-missing") for name in missing]
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s) in the predictions for {len(records)} images:", problems)
    if reparse:
        found = {name: _reparsed(line, by_id[name], classes) for name, line in found.items()}
    if len({place_column(line["objects"]) for line in found.values()}) > 1:
        raise UserError(f"{path}: some lines hold points and others boxes. Write one file for each kind.")
    like = next(iter(found.values()), None)
    return [found.get(name) or empty_prediction(record, like) for name, record in by_id.items()], missing


def _reparsed(line: Prediction, record: Record, classes: Sequence[str]) -> Prediction:
    """The line with its text read again. What the text cannot tell is taken from the line."""
    if GATED in line["problems"]:
        return line  # it has no text
    if "parts" in line:
        parts = [_read_again(line, part, *_asked_in(part, record, classes)) for part in line["parts"]]
        prediction = merge_parts(record, line["parts"], parts)
    else:
        # A looped response may have been noted as truncated, too, which its text tells again.
        cut = next((kind for kind in ("looped", "truncated") if kind in line["problems"]), None)
        response = make_part("", None, line["input_size"] or [], line["text"], cut, line.get("irrelevant") is True)
        prediction = _read_again(line, response, record, asked_classes(record, classes))
    prediction["seconds"] = line["seconds"]
    before, after = line["objects"], prediction["objects"]
    dropped = [problem for problem in line["problems"] if problem in (LOW_SCORE, SUPPRESSED)]
    if not _object_problems(before) and _are_same_objects(before, after, len(dropped)):
        prediction["objects"] = before  # the same objects: keep their scores, and drop those that were dropped
        prediction["problems"] += dropped
    return prediction


def _asked_in(part: Part, record: Record, classes: Sequence[str]) -> tuple[Record, Sequence[str]]:
    """(the tile or whole image that a part is about, the classes that its question asked for)."""
    view = record if part["tile"] is None else cut(with_objects(record, []), part["tile"])
    names = asked_classes(record, classes)
    # Questions other than the record's own are about one class each (parts.questions_of).
    is_own = part["question"] == first_question(record)
    return view, names if is_own else named_class(part["question"], names)


def _read_again(line: Prediction, part: Part, record: Record, asked: Sequence[str]) -> Prediction:
    """The response `part` of the line about `record`, read by the line's codec. `asked`: the classes that were asked for."""
    codec = line["codec"]
    assert codec is not None  # _line_problems has checked it
    return make_prediction(
        record,
        codec,
        part["input_size"],
        part["text"],
        0.0,
        asked=asked,
        # The problem "noise" tells that the checkpoint was trained with noise objects.
        noise_label=NOISE_LABEL if NOISE_LABEL in line["problems"] else "",
        irrelevant_answer=part["text"] if part.get("irrelevant") is True else "",
        starts_in_thought="thinking" in line["problems"],
        cut=part.get("cut"),
        candidates=line.get("candidates", []),
    )


def _are_same_objects(before: dict[str, list[Any]], after: dict[str, list[Any]], dropped: int) -> bool:
    """Whether the objects `before` are those of `after` in any order, without `dropped` of them."""
    place = place_column(after)
    if place not in before:
        return False
    old, new = (Counter(zip(map(tuple, o[place]), o["category"], strict=True)) for o in (before, after))
    return not old - new and (new - old).total() == dropped


# ---- validation --------------------------------------------------------------------------------------------------------


def _line_problems(line: Any, records: dict[str, Record], seen: Container[str], reparse: bool) -> list[str]:
    """Everything that is wrong with one line, with values and remedies. `seen` holds the ids of the lines before it."""
    if isinstance(line, BadLine):
        return [line.problem]
    if not isinstance(line, dict):
        return [f"must be a JSON object, got {type(line).__name__}"]
    if set(line) == {"fingerprint"}:
        return [
            "this is the partial file of an unfinished run; repeat its evaluation with the same options to finish it"
        ]
    if missing := [key for key in (KEYS_WITH_PARTS if "parts" in line else KEYS) if key not in line]:
        return [f"{shown(line.get('id', 'no id'))} lacks the key(s) {', '.join(missing)}; add them"]
    name = line["id"]
    if not isinstance(name, str) or name not in records:
        return [f"id {shown(name)} is not in this split; check --data and --split"]
    problems = [f"duplicate id {name!r}; keep one line"] if name in seen else []
    found = _value_problems(line, records[name])
    found += _codec_problems(line, records[name]) if reparse else _object_problems(line["objects"])
    return problems + [Problem(name, problem) for problem in found]


def _value_problems(line: dict[str, Any], record: Record) -> list[str]:
    """What is wrong with the values that both kinds of reading need."""
    problems = []
    width, height, kinds, seconds = line["width"], line["height"], line["problems"], line["seconds"]
    if (width, height) != (record["width"], record["height"]):
        actual = f"{record['width']} × {record['height']}"
        problems.append(f"made for {shown(width)} × {shown(height)}, but the image has {actual}; predict it again")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        problems.append(f"problems {shown(kinds)} must be a list of strings")
    if "parts" in line:
        problems += _part_problems(line["parts"])
    elif not isinstance(line["text"], str):
        problems.append(f"text {shown(line['text'])} must be a string")
    if seconds is not None and not _is_number(seconds):
        problems.append(f"seconds {shown(seconds)} must be a number, or null if unknown")
    return problems


def _codec_problems(line: dict[str, Any], record: Record) -> list[str]:
    """What is wrong with the values that reading the text again needs."""
    problems = []
    candidates = line.get("candidates", [])
    if not isinstance(candidates, list) or not all(isinstance(name, str) for name in candidates):
        problems.append(f"candidates {shown(candidates)} must be a list of texts")
    if line.get("decoder", TEXT) != TEXT:
        problems.append(f"decoder {shown(line['decoder'])}: its boxes are not in the text; leave out --reparse")
    codec = line["codec"]
    if not isinstance(codec, str) or codec not in CODECS:
        problems.append(f"unknown codec {shown(codec)}; choose from {', '.join(CODECS)}")
    responses = [line]
    if "parts" in line:
        responses = [] if _part_problems(line["parts"]) else line["parts"]
    for response in responses:
        if not _is_size(response["input_size"]):
            problems.append(f"input_size {shown(response['input_size'])} must be [height, width] in whole pixels")
        if response.get("tile") is not None:
            problems += _tile_problems(response["tile"], codec, record)
    return problems


def _tile_problems(tile: Any, codec: Any, record: Record) -> list[str]:
    """Why a response about a tile of the record's image cannot be read again."""
    width, height = record["width"], record["height"]
    if not (_is_box(tile) and min(tile) >= 0 and tile[2] <= width and tile[3] <= height):
        return [f"tile {shown(tile)} is not [x0, y0, x1, y1] inside {width} × {height}"]
    if any(value != int(value) for value in tile):
        return [f"tile {shown(tile)} must be in whole pixels"]
    if isinstance(codec, str) and codec in CODECS and CODECS[codec].is_click:
        return [f"tile {shown(tile)}: points of several tiles cannot be merged"]
    return []


def _part_problems(parts: Any) -> list[str]:
    """What is wrong with the parts of a line."""
    if not isinstance(parts, list) or not parts:
        return [f"parts {shown(parts)} must be a list with one entry per question"]
    problems = []
    for part in parts:
        if not isinstance(part, dict) or any(key not in part for key in PART_KEYS):
            problems.append(f"part {shown(part)} must be an object with {', '.join(PART_KEYS)}")
        elif not isinstance(part["question"], str) or not isinstance(part["text"], str):
            problems.append(f"question and text of part {shown(part)} must be strings")
        elif part.get("cut") not in (None, "looped", "truncated"):
            problems.append(f"cut {shown(part['cut'])} must be looped or truncated")
    return problems


def _object_problems(objects: Any) -> list[str]:
    """What is wrong with the objects of a line."""
    places = [key for key in ("bbox", "point") if isinstance(objects, dict) and key in objects]
    if len(places) != 1 or not all(isinstance(objects.get(key), list) for key in (*places, "category", "score")):
        return ["objects must hold the lists bbox (or point), category and score"]
    place = places[0]
    scorers = [f"score_{name}" for name in RANKINGS if f"score_{name}" in objects]
    if not_lists := [key for key in scorers if not isinstance(objects[key], list)]:
        return [f"objects: {key} {shown(objects[key])} must be a list" for key in not_lists]
    captions = [CAPTION] if CAPTION in objects else []
    if captions and not _are_captions(objects[CAPTION]):
        return [f"objects: caption {shown(objects[CAPTION])} must be a list of texts, or null for objects without one"]
    lengths = {key: len(objects[key]) for key in (place, "category", *captions, "score", *scorers)}
    if len(set(lengths.values())) > 1:
        return [f"the lists in objects differ in length: {lengths}; write one entry per object in each"]
    problems = []
    for value in objects[place]:
        if place == "point" and not _are_numbers(value, 2):
            problems.append(f"point {shown(value)} is not [x, y]")
        if place == "bbox" and not _is_box(value):
            problems.append(f"bbox {shown(value)} is not [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
    for label in objects["category"]:
        if not isinstance(label, str):
            problems.append(f"category {shown(label)} is not a string")
    for key in ("score", *scorers):
        for score in objects[key]:
            if not (type(score) in _NUMBERS and 0 <= score <= 1):
                problems.append(f"{key} {_score_problem(score)}")
    return problems


def _score_problem(score: Any) -> str:
    """What is wrong with a score that is not a number from 0 to 1."""
    if not _is_number(score):
        return f"{shown(score)} is not a number from 0 to 1; use 1.0 if there is no score"
    remedy = "divide by 100" if 1 < score <= 100 else "scale them"
    return f"{shown(score)} is not a number from 0 to 1: scores lie in 0…1; {remedy}"


def _is_number(value: Any) -> bool:
    return type(value) in _NUMBERS and -LIMIT < value < LIMIT


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(_is_number(value) for value in values)


def _is_box(value: Any) -> bool:
    """Written out, because a file may hold hundreds of thousands of boxes."""
    if type(value) is not list or len(value) != 4:
        return False
    x0, y0, x1, y1 = value
    are_numbers = type(x0) in _NUMBERS and type(y0) in _NUMBERS and type(x1) in _NUMBERS and type(y1) in _NUMBERS
    return are_numbers and -LIMIT < x0 < x1 < LIMIT and -LIMIT < y0 < y1 < LIMIT


def _are_captions(values: Any) -> bool:
    return isinstance(values, list) and all(value is None or isinstance(value, str) for value in values)


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(side) is int and 0 < side < LIMIT for side in value)
