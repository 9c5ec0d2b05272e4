"""Join prepared datasets.

    python -m data_prep merge A B [C ...] --out DIR [--copy-images]
    python -m data_prep merge A CORRECTED --out DIR --replace

Images stay in their splits. Classes are in the order in which they appear. A column of objects
that only some of the datasets have is null elsewhere. Images keep their questions, which ask for
the classes of their own dataset; --ask-all asks for all classes everywhere. An image id may be in
one dataset only; with --replace, the image of a later dataset replaces the earlier one and keeps
its split and its question.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.files import path_argument
from boxtune.common.json_lines import read_json_lines
from boxtune.common.problems import join_names, list_problems
from boxtune.data.dataset import check_writable_target, read_info, read_splits, write_dataset
from boxtune.data.image_checks import BadImage, check_images
from boxtune.data.questions import is_standard, turns_for
from boxtune.data.records import SPLITS, Record, as_objects, object_columns, with_absolute_image
from data_prep.pipeline.dataset_warnings import duplicate_warnings
from data_prep.pipeline.summary import print_summary
from data_prep.reading.spool import folder_for_scratch


@dataclass(frozen=True)
class _Set:
    """One of the datasets. problems: the lines of its problems.jsonl."""

    folder: Path
    format: str
    classes: list[str]
    descriptions: dict[str, str]
    splits: dict[str, list[Record]]
    problems: list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, nargs="+", help="prepared datasets, at least two")
    parser.add_argument("--out", metavar="DIR", type=path_argument, required=True, help="folder of the joined dataset")
    parser.add_argument(
        "--replace", action="store_true", help="an image of a later dataset replaces an earlier one with the same id"
    )
    parser.add_argument(
        "--ask-all",
        action="store_true",
        help="ask for all classes in every image; only correct if every dataset is annotated for all classes",
    )
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the images into DIR instead of referencing them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset at DIR")


def main(args: argparse.Namespace) -> None:
    """Write the whole joined dataset, or nothing."""
    out = Path(os.path.realpath(args.out))
    _check_arguments(args.data, out, args.overwrite)
    sets = [_read(folder) for folder in args.data]
    if not args.replace:
        _check_ids(sets)
    classes = list(dict.fromkeys(name for one in sets for name in one.classes))
    descriptions = _join_descriptions(sets)
    splits = _join_splits(sets)
    if args.ask_all:
        splits = {
            split: [_asking(record, classes, descriptions) for record in members] for split, members in splits.items()
        }
    warnings = [*([] if args.ask_all else _class_warnings(sets, classes)), *_image_warnings(splits)]
    problems = _join_problems(sets)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=folder_for_scratch(out)) as scratch:
        staged = Path(scratch) / "images"
        if args.copy_images:
            splits = {split: [_copied(record, staged) for record in members] for split, members in splits.items()}
        write_dataset(
            out,
            name=out.name,
            source_format=sets[0].format if len({one.format for one in sets}) == 1 else "merge",
            classes=classes,
            splits=splits,
            problems=problems,
            overwrite=args.overwrite,
            staged_images=staged if args.copy_images else None,
            descriptions=descriptions,
        )
    for line in list_problems(warnings, bullet="warning: "):
        print(line, file=sys.stderr)
    print_summary(out, classes, splits, problems)


def _check_arguments(folders: list[Path], out: Path, overwrite: bool) -> None:
    """Raise UserError if there is nothing to join, or if the result would replace what it is made from."""
    real = [Path(os.path.realpath(folder)) for folder in folders]
    if len({*real}) < 2 or len({*real}) < len(real):
        raise UserError(f"merge: give at least two different datasets, got {join_names(map(str, folders))}.")
    if inside := [folder for folder, path in zip(folders, real, strict=True) if path.is_relative_to(out)]:
        raise UserError(f"{inside[0]} is inside {out}, which would be replaced. Use another --out.")
    check_writable_target(out, overwrite)


def _read(folder: Path) -> _Set:
    info = read_info(folder)
    problems = folder / "problems.jsonl"
    return _Set(
        folder=folder,
        format=info["format"],
        classes=info["classes"],
        descriptions=info.get("descriptions", {}),
        splits={
            split: [with_absolute_image(record, folder) for record in records]
            for split, records in read_splits(folder).items()
        },
        problems=[line for _, line in read_json_lines(problems)] if problems.is_file() else [],
    )


# ---- joining -------------------------------------------------------------------------------------------------------------


def _check_ids(sets: Sequence[_Set]) -> None:
    """Raise UserError listing ids that are in more than one dataset or split."""
    folders: dict[str, list[Path]] = {}
    for one in sets:
        for records in one.splits.values():
            for record in records:
                folders.setdefault(record["id"], []).append(one.folder)
    if colliding := [
        f"{name}: in {join_names(map(str, places))}" for name, places in folders.items() if len(places) > 1
    ]:
        raise UserError(
            f"merge: {len(colliding)} image id(s) are in more than one dataset. If they are the same images, --replace keeps the "
            "last one of each. If not, put the images of each dataset into a folder of its own and convert them from the folder "
            "above, so that ids begin with the folder:",
            colliding,
        )


def _join_splits(sets: Sequence[_Set]) -> dict[str, list[Record]]:
    """{split: records}, with the same columns of objects in all records. A later record replaces an earlier one of its id; it
    takes its place, split and question."""
    joined: dict[str, tuple[str, Record]] = {}
    for one in sets:
        for split, records in one.splits.items():
            for record in records:
                split_now, earlier = joined.get(record["id"], (split, record))
                joined[record["id"]] = split_now, record | {"messages": earlier["messages"]}
    columns = list(dict.fromkeys(key for _, record in joined.values() for key in record["objects"]))
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for split, record in joined.values():
        splits[split].append(_with_columns(record, columns))
    return {split: records for split, records in splits.items() if records}


def _with_columns(record: Record, columns: list[str]) -> Record:
    """The record with all `columns` of objects; those that it does not have are null."""
    own = object_columns(record["objects"])
    count = len(record["objects"]["bbox"])
    return record | {"objects": as_objects({key: own.get(key, [None] * count) for key in columns})}


def _join_descriptions(sets: Sequence[_Set]) -> dict[str, str]:
    """Raises UserError if two datasets describe a class differently."""
    joined: dict[str, str] = {}
    problems = []
    for one in sets:
        for name, text in one.descriptions.items():
            if joined.setdefault(name, text) != text:
                problems.append(f"{name}: {joined[name]!r}, but {text!r} in {one.folder}")
    if problems:
        raise UserError(
            "merge: the datasets describe a class differently. Convert one of them again with the same --descriptions, or change "
            "dataset.json:",
            problems,
        )
    return joined


def _join_problems(sets: Sequence[_Set]) -> list[dict[str, Any]]:
    """All problems, without those of images that were replaced."""
    last = {record["id"]: one.folder for one in sets for records in one.splits.values() for record in records}
    return [line for one in sets for line in one.problems if last.get(str(line.get("id")), one.folder) == one.folder]


def _asking(record: Record, classes: list[str], descriptions: dict[str, str]) -> Record:
    """The record with a question for all classes, if it asks for all classes of its dataset."""
    return record | {"messages": turns_for(classes, None, descriptions)} if is_standard(record) else record


def _copied(record: Record, staged: Path) -> Record:
    """The record with its image copied to `staged`, under its id."""
    name = f"{record['id']}{Path(record['image']).suffix}"
    (staged / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(record["image"], staged / name)
    return record | {"image": f"images/{name}"}


# ---- warnings ------------------------------------------------------------------------------------------------------------


def _class_warnings(sets: Sequence[_Set], classes: list[str]) -> list[str]:
    """A warning for each dataset that lacks a class of another."""
    lacking = {one.folder: [name for name in classes if name not in one.classes] for one in sets}
    return [
        f"{folder} has no class {join_names(names)}, so questions about its images do not ask for it. If all its images "
        "are annotated for all classes, use --ask-all"
        for folder, names in lacking.items()
        if names
    ]


def _image_warnings(splits: dict[str, list[Record]]) -> list[str]:
    """Warnings on identical images. Raises UserError listing every image that cannot be read."""
    split_by_id = {record["id"]: split for split, records in splits.items() for record in records}
    paths = {record["id"]: record["image"] for records in splits.values() for record in records}
    facts = dict(zip(paths, check_images([*paths.values()], os.cpu_count() or 1), strict=True))
    if bad := [f"{name}: {found.reason}" for name, found in facts.items() if isinstance(found, BadImage)]:
        raise UserError(
            f"merge: {len(bad)} image(s) cannot be read, so nothing was written. Fix them, or convert again:", bad
        )
    digests = {name: found.digest for name, found in facts.items() if not isinstance(found, BadImage)}
    return [*duplicate_warnings(split_by_id, digests), *_repeated_warnings(split_by_id, digests)]


def _repeated_warnings(split_by_id: dict[str, str], digests: dict[str, bytes]) -> list[str]:
    """A warning on identical images within a split, such as one that is labeled and pseudo-labeled."""
    first: dict[tuple[str, bytes], str] = {}
    repeated = [
        f"{name} = {known} ({split})"
        for name, split in split_by_id.items()
        if (known := first.setdefault((split, digests[name]), name)) != name
    ]
    if not repeated:
        return []
    return [
        f"{len(repeated)} image(s) are in a split under two ids, with the objects of each: {join_names(repeated[:3])}"
    ]
