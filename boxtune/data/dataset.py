"""Reading and writing a prepared dataset: DIR/{train,validation,test}.jsonl, DIR/dataset.json and DIR/problems.jsonl."""

import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from boxtune.common.errors import UserError, reading
from boxtune.common.files import check_is_text, replace_folder, write_whole
from boxtune.common.garbage import collector_paused
from boxtune.common.json_lines import BadLine, read_json_lines, to_json_line
from boxtune.common.problems import Problem, join_names
from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions
from boxtune.data.record_checks import info_problems, record_problems
from boxtune.data.records import SPLITS, Record

# The splits' folders in the layout that detector tools such as YOLO expect.
SPLIT_FOLDERS = {"train": "train", "validation": "val", "test": "test"}

# The arguments of the converter, as a list of words, where a recipe prepared the dataset.
_ARGUMENTS = "arguments.json"
# The files that boxtune writes. --overwrite deletes nothing else.
_OWN_NAMES = {*(f"{split}.jsonl" for split in SPLITS), "dataset.json", "problems.jsonl", "images", _ARGUMENTS}
_ARCHIVES = re.compile(r"train-\d{6}\.tar")  # of shards.py


class SplitCounts(TypedDict):
    """Numbers of images, of objects, and of images without objects in one split."""

    images: int
    objects: int
    empty: int


class DatasetInfo(TypedDict):
    """The content of dataset.json. `classes` are in order, `problems` counts the lines of problems.jsonl by kind.

    descriptions: {class: what it means}, as questions name it; absent if no class has one. shards: the archives of a split that
    has no JSONL file (shards.py).
    """

    name: str
    format: str
    classes: list[str]
    descriptions: NotRequired[dict[str, str]]
    splits: dict[str, SplitCounts]
    problems: dict[str, int]
    shards: NotRequired[dict[str, Any]]


# ---- reading -----------------------------------------------------------------------------------------------------------


def read_info(directory: Path) -> DatasetInfo:
    """The content of dataset.json. Raises UserError where `directory` is not a prepared dataset."""
    path = Path(directory) / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{directory} is not a prepared dataset: it has no dataset.json. "
            f"Prepare one: python -m data_prep FORMAT SOURCE --out {directory}. If you moved it, give the new path (--data DIR, "
            "or data_dir in a recipe)."
        )
    check_is_text(path)
    try:
        info: DatasetInfo = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is corrupt: {error}. Prepare the data again with --overwrite.") from None
    if problems := info_problems(info):
        raise UserError(
            f"{path} does not have the expected content. Prepare the data again with --overwrite:", problems
        )
    files = [f"{split}.jsonl" for split in SPLITS if (path.parent / f"{split}.jsonl").is_file()]
    if uncounted := [name for name in files if Path(name).stem not in info["splits"]]:
        raise UserError(
            f"{path} does not count the images of {', '.join(uncounted)}. Prepare the data again, add the split to dataset.json, "
            "or remove the file."
        )
    return info


@collector_paused()
def read_records(directory: Path, split: str) -> list[Record]:
    """The validated records of one split, in file order. Raises UserError that lists every bad line."""
    info = read_info(directory)
    path = Path(directory) / f"{split}.jsonl"
    if not path.is_file() and split in info.get("shards", {}):
        raise UserError(
            f"{directory} has its split {split!r} in shards, which only training reads. Use the dataset that they were made from."
        )
    if not path.is_file():
        raise UserError(f"{directory} has no split {split!r}; it has {', '.join(info['splits']) or 'none'}.")
    records: list[Record] = []
    problems: list[str] = []
    seen: set[str] = set()
    for number, line in read_json_lines(path):
        found = [line.problem] if isinstance(line, BadLine) else record_problems(line)
        if not found and line["id"] in seen:
            found = [Problem(line["id"], "duplicate id")]
        problems += [Problem(f"line {number}", problem) for problem in found]
        if not found:
            seen.add(line["id"])
            records.append(line)
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s). Prepare the data again, or fix these lines:", problems)
    expected = info["splits"][split]["images"] if split in info["splits"] else 0
    if expected != len(records):
        found_images = f"has {len(records)} images" if records else "is empty"
        raise UserError(
            f"{path} {found_images}; dataset.json counts {expected} images. Prepare the data again, or correct the number of "
            "images in dataset.json if you changed the file."
        )
    return records


def read_splits(directory: Path, wanted: Iterable[str] = SPLITS) -> dict[str, list[Record]]:
    """The records of those `wanted` splits that the dataset has. Raises UserError as read_records does."""
    present = read_info(directory)["splits"]
    return {split: read_records(directory, split) for split in wanted if split in present}


def data_hash(directory: Path) -> str:
    """SHA-256 over the split files, which identifies the data that a run was trained on."""
    digest = hashlib.sha256()
    for split in SPLITS:
        path = Path(directory) / f"{split}.jsonl"
        if path.is_file():
            digest.update(f"{split}\n".encode())
            digest.update(path.read_bytes())
    for split, shards in read_info(directory).get("shards", {}).items():
        digest.update(f"{split}\n{shards['sha256']}".encode())
    return digest.hexdigest()


def read_arguments(directory: Path) -> list[str] | None:
    """The converter's arguments where a recipe prepared the dataset; None where a user did."""
    path = Path(directory) / _ARGUMENTS
    if not path.is_file():
        return None
    with reading(str(path), "Remove it."):
        return [str(word) for word in json.loads(path.read_text(encoding="utf-8"))]


# ---- writing -----------------------------------------------------------------------------------------------------------


def write_arguments(directory: Path, arguments: list[str]) -> None:
    """Keep the converter's arguments, so that a recipe with other arguments can be recognized."""
    write_whole(Path(directory) / _ARGUMENTS, json.dumps(arguments, ensure_ascii=False) + "\n")


def write_dataset(
    directory: Path,
    *,
    name: str,
    source_format: str,
    classes: list[str],
    splits: Mapping[str, Iterable[Record]],
    problems: Iterable[Mapping[str, Any]],
    overwrite: bool = False,
    staged_images: Path | None = None,
    descriptions: Descriptions = NO_DESCRIPTIONS,
) -> None:
    """Write a prepared dataset completely or not at all: into a temporary folder next to `directory`, then renamed.

    `staged_images` is a folder that becomes DIR/images. Raises UserError where `directory` exists and `overwrite` is not set.
    """
    with new_dataset(directory, overwrite) as temporary:
        counts = {split: write_split(temporary / f"{split}.jsonl", records) for split, records in splits.items()}
        described: dict[str, Any] = {"descriptions": dict(descriptions)} if descriptions else {}
        info = {
            "name": name,
            "format": source_format,
            "classes": classes,
            **described,
            "splits": counts,
            "problems": _write_problems(temporary / "problems.jsonl", problems),
        }
        write_info(temporary, info)
        if staged_images is not None:
            shutil.move(staged_images, temporary / "images")


@contextmanager
def new_dataset(directory: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder next to `directory`, which becomes `directory` at the end of the block, or is deleted if it fails.

    Raises UserError as check_writable_target does.
    """
    directory = Path(directory).resolve()  # through links, so that the temporary folder is on the same disk
    check_writable_target(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name[:64]}.", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        replace_folder(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_info(directory: Path, info: Mapping[str, Any]) -> None:
    """Write dataset.json."""
    (directory / "dataset.json").write_text(json.dumps(info, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_split(path: Path, records: Iterable[Record]) -> SplitCounts:
    """Write one split file. Returns its entry in dataset.json."""
    images = objects = empty = 0
    with open(path, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(to_json_line(record))
            count = len(record["objects"]["bbox"])
            images += 1
            objects += count
            empty += count == 0
    return {"images": images, "objects": objects, "empty": empty}


def _write_problems(path: Path, problems: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Write problems.jsonl. Returns the number of problems by kind, sorted by kind."""
    counts: Counter[str] = Counter()
    with open(path, "w", encoding="utf-8") as lines:
        for problem in problems:
            lines.write(to_json_line(problem))
            counts[problem["kind"]] += 1
    return dict(sorted(counts.items()))


def check_writable_target(directory: Path, overwrite: bool) -> None:
    """Raise UserError where writing to `directory` would destroy something other than a dataset marked for overwriting."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; --out must name a folder.")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{directory} exists. Use --overwrite to replace it, or another --out.")
    names = {path.name for path in directory.iterdir()}
    foreign_names = sorted(name for name in names - _OWN_NAMES if not _ARCHIVES.fullmatch(name))
    if "dataset.json" not in names or foreign_names:
        foreign = join_names(foreign_names) or "no dataset.json"
        raise UserError(
            f"{directory} holds something other than a prepared dataset ({foreign}); --overwrite replaces only prepared datasets."
        )
