"""The prepared data set: DIR/{train,validation,test}.jsonl, DIR/dataset.json and DIR/problems.jsonl.

A record is one image (see docs/architecture.md for the format). This module reads, validates and writes; it imports
neither torch nor transformers.
"""

import hashlib
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError, reading, shown
from boxtune.common.files import replace_folder, write_whole
from boxtune.data.boxes import box_area

SPLITS = ("train", "validation", "test")
# What tools for detectors call them.
SPLIT_FOLDERS = {"train": "train", "validation": "val", "test": "test"}
# A processor refuses pictures that are longer than this many times their breadth (transformers' smart_resize).
MAX_ASPECT_RATIO = 200
# No format of pictures holds a longer side (PNG).
MAX_SIDE = 2**31

Record = dict[str, Any]

# Beside a data set that a recipe had prepared: the converter's arguments, as a list of words.
_ARGUMENTS = "arguments.json"
# What boxtune makes; --overwrite deletes nothing else.
_OWN_NAMES = {*(f"{split}.jsonl" for split in SPLITS), "dataset.json", "problems.jsonl", "images", _ARGUMENTS}

# A whole assistant turn that stands for all objects, or for those of one category.
PLACEHOLDER = re.compile(r"<boxes(?::(.+))?>", re.DOTALL)

# Line breaks and other control characters, halves of characters (surrogates), special tokens, and the words that stand for
# pictures and boxes in a turn.
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|<\||<click>|<image>|<boxes[:>]")

# Tokens that start or end a turn or a picture in every Qwen family; as text in a turn they would do so, too. Halves of
# characters cannot be tokenised.
_TURN_TOKENS = re.compile(r"<\|(?:im_|endoftext|vision_|image_|video_)|[\ud800-\udfff]")


def raster_order(boxes_xyxy: list[list[float]]) -> list[int]:
    """The boxes' positions by top and then left edge, as lines of print are read."""
    return sorted(range(len(boxes_xyxy)), key=lambda i: (boxes_xyxy[i][1], boxes_xyxy[i][0]))


def in_order(record: Record, order: str) -> Record:
    """The record with its objects as annotated ("source"), by top and then left edge ("raster"), the largest first
    ("area"), or shuffled by its id ("random")."""
    boxes_xyxy = record["objects"]["bbox"]
    positions = list(range(len(boxes_xyxy)))
    if order == "raster":
        positions = raster_order(boxes_xyxy)
    elif order == "area":
        areas = box_area(boxes_xyxy)
        positions.sort(key=lambda i: -areas[i])
    elif order == "random":
        random.Random(record["id"]).shuffle(positions)
    return with_objects(record, positions)


def with_objects(record: Record, positions: Iterable[int]) -> Record:
    """The record with just these objects, in this order."""
    return record | {"objects": {key: [column[i] for i in positions] for key, column in record["objects"].items()}}


def answer_objects(record: Record, category: str | None = None) -> tuple[list[list[float]], list[str]]:
    """(boxes_xyxy, labels) that an answer names: all objects not ignored, or those of one category."""
    objects = record["objects"]
    kept = [
        (box, label)
        for box, label, ignored in zip(objects["bbox"], objects["category"], objects["ignore"], strict=True)
        if not ignored and category in (None, label)
    ]
    return [box for box, _ in kept], [label for _, label in kept]


def label_problem(label: object) -> str | None:
    """Why a class name cannot be written into an answer, or None. `<|` would turn into special tokens."""
    if not isinstance(label, str):
        return f"class name {shown(label)} is no text"
    if not label.strip():
        return f"class name {shown(label)} is empty"
    if label != label.strip():
        return f"class name {shown(label)} has space around it"
    if found := _UNSPEAKABLE.search(label):
        return f"class name {shown(label)} holds {found.group()!r}, part of a special token or a control character"
    return None


def breaks_turns(text: str) -> bool:
    """Whether text of a conversation would end its turn, or stand for a picture, once it is tokenised."""
    return "<image>" in text or _TURN_TOKENS.search(text) is not None


def record_problems(record: Any) -> list[str]:
    """Everything that is wrong with one record; an empty list when it keeps the contract."""
    if not isinstance(record, dict):
        return [f"a line must be a JSON object, got {type(record).__name__}"]
    missing = [key for key in ("id", "image", "width", "height", "objects", "messages") if key not in record]
    if missing:
        return [f"{shown(record.get('id', '?'))}: missing {', '.join(missing)}"]
    name, width, height, objects = record["id"], record["width"], record["height"], record["objects"]
    if not isinstance(name, str) or not isinstance(record["image"], str):
        return [f"id {shown(name)} and image {shown(record['image'])} must be text"]
    if not name or "\0" in name:
        return [f"id {shown(name)} cannot name a file"]
    if not all(type(side) is int and 0 < side < MAX_SIDE for side in (width, height)):
        return [f"{name}: width {shown(width)} and height {shown(height)} must be positive integers"]
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return [f"{name}: {width} × {height} is longer than {MAX_ASPECT_RATIO} times its breadth"]
    columns = {key: objects.get(key) for key in ("bbox", "category", "ignore")} if isinstance(objects, dict) else {}
    if not columns or not all(isinstance(column, list) for column in objects.values()) or None in columns.values():
        return [f"{name}: objects must hold the lists bbox, category and ignore"]
    if len({len(column) for column in objects.values()}) > 1:
        return [
            f"{name}: the lists in objects differ in length: { {key: len(column) for key, column in objects.items()} }"
        ]
    problems = [f"{name}: {problem}" for problem in map(label_problem, columns["category"]) if problem]
    problems += [
        f"{name}: ignore {shown(value)} must be true or false" for value in columns["ignore"] if value not in (0, 1)
    ]
    for box in columns["bbox"]:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        if not numbers or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            problems.append(f"{name}: bbox {shown(box)} is not [x0, y0, x1, y1] inside {width} × {height}")
    turns = record["messages"]
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn for turn in turns
    ):
        problems.append(f"{name}: messages must be a list of role and content, both text")
    elif [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        problems.append(f"{name}: messages must take turns, user first and assistant last")
    elif sum(turn["content"].count("<image>") for turn in turns) != 1 or "<image>" not in turns[0]["content"]:
        problems.append(f"{name}: the first question must name <image> once, no other turn may")
    elif any(breaks_turns(turn["content"].replace("<image>", "")) for turn in turns):
        problems.append(
            f"{name}: a turn holds half a character, or one of the tokens that end turns or stand for pictures"
        )
    else:
        labels = [label for label in columns["category"] if isinstance(label, str)]  # of others it is said above
        answers = [placeholder_problem(turn["content"], labels) for turn in turns[1::2]]
        problems += [f"{name}: {problem}" for problem in answers if problem]
    return problems


def placeholder_problem(answer: str, labels: list[str]) -> str | None:
    """What is wrong with an answer that seems to stand for objects, which bear `labels`; None where nothing is."""
    whole = PLACEHOLDER.fullmatch(answer)
    named = whole and whole.group(1)
    if not whole or (named and label_problem(named)):
        if re.search(r"<boxes[:>]", answer):
            return f"{shown(answer)}: <boxes> and <boxes:NAME> stand for objects only where they are the whole answer"
    elif (
        named and named not in labels and (alike := [label for label in labels if label.casefold() == named.casefold()])
    ):
        return f"{shown(answer)}: there are none of that name, but of {shown(alike[0])}"
    return None


def info_problems(info: Any) -> list[str]:
    """Everything that is wrong with the contents of dataset.json."""
    if not isinstance(info, dict):
        return [f"must hold a JSON object, got {type(info).__name__}"]
    kinds = {"name": str, "format": str, "classes": list, "splits": dict, "problems": dict}
    words = {str: "text", list: "a list", dict: "a mapping"}
    problems = [
        f"{key}: {info.get(key)!r} must be {words[kind]}"
        for key, kind in kinds.items()
        if not isinstance(info.get(key), kind)
    ]
    if problems:
        return problems
    problems = [] if info["classes"] else ["classes: must name at least one class"]
    problems += [problem for problem in map(label_problem, info["classes"]) if problem]
    for split, counts in info["splits"].items():
        if split not in SPLITS:
            problems.append(f"splits: {split!r} must be one of {', '.join(SPLITS)}")
        if not isinstance(counts, dict) or not all(
            isinstance(counts.get(key), int) for key in ("images", "objects", "empty")
        ):
            problems.append(f"splits: {split}: {counts!r} must count images, objects and empty")
    problems += [
        f"problems: {kind}: {n!r} must be a count" for kind, n in info["problems"].items() if type(n) is not int
    ]
    return problems


def read_info(directory: Path) -> dict:
    """dataset.json. Raises UserError where DIR is no prepared data set."""
    path = Path(directory) / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is no prepared data set (no dataset.json). "
            f"Make one: python -m data_prep FORMAT SOURCE --out {directory}; if it was moved, name its new place (--data DIR, "
            "or data_dir in a recipe)."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is torn: {error}. Prepare the data again with --overwrite.") from None
    if problems := info_problems(info):
        raise UserError(f"{path} is not what a conversion writes. Prepare the data again with --overwrite:", problems)
    return info


def write_arguments(directory: Path, arguments: list[str]) -> None:
    """Remember what a recipe had DIR prepared with, so that a recipe with other arguments can be told."""
    write_whole(Path(directory) / _ARGUMENTS, json.dumps(arguments, ensure_ascii=False) + "\n")


def read_arguments(directory: Path) -> list[str] | None:
    """What a recipe had DIR prepared with; None where DIR was prepared by hand."""
    path = Path(directory) / _ARGUMENTS
    if not path.is_file():
        return None
    with reading(str(path), "Remove it."):
        return [str(word) for word in json.loads(path.read_text(encoding="utf-8"))]


def read_records(directory: Path, split: str) -> list[Record]:
    """The validated records of one split, in file order. Raises UserError that lists every bad line."""
    info = read_info(directory)
    path = Path(directory) / f"{split}.jsonl"
    if not path.is_file():
        raise UserError(f"{directory} has no split {split!r}; it has {', '.join(info['splits']) or 'none'}.")
    records, problems, seen = [], [], set()
    for number, record in read_json_lines(path):
        found = [record] if isinstance(record, str) else record_problems(record)
        if not found and record["id"] in seen:
            found = [f"{record['id']}: this id stands twice"]
        problems += [f"line {number}: {problem}" for problem in found]
        if not found:
            seen.add(record["id"])
            records.append(record)
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s). Prepare the data again, or mend these lines:", problems)
    counted = info["splits"].get(split, {}).get("images", 0)
    if counted and not records:
        raise UserError(f"{path} is empty; dataset.json counts {counted} images. Prepare the data again.")
    return records


def read_splits(directory: Path, wanted: Iterable[str] = SPLITS) -> dict[str, list[Record]]:
    """The records of those wanted splits that the data set has. Raises UserError as read_records does."""
    present = read_info(directory)["splits"]
    return {split: read_records(directory, split) for split in wanted if split in present}


def read_json_lines(path: Path) -> Iterable[tuple[int, Any]]:
    """(line number from 1, value) of a JSONL file; a line that is no JSON gives a string that says so."""
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                value = f"not JSON ({error})"
            yield (
                number,
                value if not isinstance(value, str) or value.startswith("not JSON") else "a string, not an object",
            )


def image_path(record: Record, directory: Path) -> Path:
    """Where a record's picture lies: absolute, or relative to the data set."""
    return Path(directory) / record["image"]


def flat_name(record_id: str) -> str:
    """An id as the name of one file, folders and all."""
    return record_id.replace("%", "%25").replace("/", "%2F")


def data_hash(directory: Path) -> str:
    """SHA-256 over the split files, which names the data that a run was trained on."""
    digest = hashlib.sha256()
    for split in SPLITS:
        path = Path(directory) / f"{split}.jsonl"
        if path.is_file():
            digest.update(f"{split}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def to_json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def write_dataset(
    directory: Path,
    *,
    name: str,
    source_format: str,
    classes: list[str],
    splits: dict[str, Iterable[Record]],
    problems: Iterable[dict],
    overwrite: bool = False,
    staged_images: Path | None = None,
) -> None:
    """Write a prepared data set as a whole: into a temporary folder beside DIR, then renamed into place.

    `staged_images` is a folder that becomes DIR/images. Raises UserError where DIR exists and `overwrite` is not set.
    """
    directory = Path(directory).resolve()  # so that the temporary folder lies on the same disk
    check_writable_target(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name[:64]}.", dir=directory.parent))
    try:
        summaries = {split: _write_split(temporary / f"{split}.jsonl", records) for split, records in splits.items()}
        kinds = Counter()
        with open(temporary / "problems.jsonl", "w", encoding="utf-8") as lines:
            for problem in problems:
                lines.write(to_json_line(problem))
                kinds[problem["kind"]] += 1
        info = {
            "name": name,
            "format": source_format,
            "classes": classes,
            "splits": summaries,
            "problems": dict(sorted(kinds.items())),
        }
        (temporary / "dataset.json").write_text(json.dumps(info, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        if staged_images is not None:
            shutil.move(staged_images, temporary / "images")
        temporary.chmod(0o755)
        replace_folder(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(path: Path, records: Iterable[Record]) -> dict[str, int]:
    """The entry of the split in dataset.json."""
    images = objects = empty = 0
    with open(path, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(to_json_line(record))
            count = len(record["objects"]["bbox"])
            images, objects, empty = images + 1, objects + count, empty + (count == 0)
    return {"images": images, "objects": objects, "empty": empty}


def check_writable_target(directory: Path, overwrite: bool) -> None:
    """Raise UserError where writing to DIR would destroy something that the user did not offer."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; --out must name a folder.")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{directory} exists. Use --overwrite to replace it, or another --out.")
    names = {path.name for path in directory.iterdir()}
    if "dataset.json" not in names or names - _OWN_NAMES:
        foreign = ", ".join(sorted(names - _OWN_NAMES)[:10]) or "no dataset.json"
        raise UserError(
            f"{directory} holds something other than a prepared data set ({foreign}); --overwrite replaces only those."
        )
