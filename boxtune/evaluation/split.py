"""The images that an evaluation is about: which dataset and split, and their records."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from boxtune.answers.grounding import Grounding
from boxtune.common.errors import UserError, reading
from boxtune.data.dataset import read_info, read_records
from boxtune.data.questions import as_asked
from boxtune.data.records import Record
from boxtune.inference.unlabelled import unlabelled_records


@dataclass(frozen=True)
class Split:
    """The records to evaluate. `name` is None for images without ground truth.

    `classes` are in the order of their ids; `asked` are those that a question about all objects names.
    """

    data_dir: Path
    name: str | None
    classes: list[str]
    asked: list[str]
    records: list[Record]


def read_split(data_dir: Path, name: str, limit: int | None = None, ids: set[str] | None = None) -> Split:
    """One split of a prepared dataset, or its first `limit` records, or those with one of `ids`.

    Records hold the objects that their first question asks for.
    """
    classes = read_info(data_dir)["classes"]
    records = [record for record in read_records(data_dir, name)[:limit] if ids is None or record["id"] in ids]
    return Split(data_dir, name, classes, classes, [as_asked(record) for record in records])


def read_images(args: argparse.Namespace, grounding: Grounding, copies: Path) -> Split:
    """The images that --images names, asked about --classes or the trained classes. `copies`: see `unlabelled_records`."""
    names = grounding.classes if args.classes is None else args.classes.split(",")
    asked = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    records = unlabelled_records(args.images, asked, copies, args.skip_bad_images, grounding.descriptions)
    classes = list(dict.fromkeys([*grounding.classes, *asked]))  # the trained classes keep their ids
    return Split(args.images, None, classes, asked, records)


def data_of_checkpoint(args: argparse.Namespace, grounding: Grounding) -> tuple[Path, str]:
    """(prepared dataset, split) to evaluate a checkpoint on: those of the options, by default the dataset of its training."""
    data_dir = dataset_of_checkpoint(args, grounding)
    return data_dir, choose_split(data_dir, args.split)


def dataset_of_checkpoint(args: argparse.Namespace, grounding: Grounding) -> Path:
    """The prepared dataset of the options, by default that of the checkpoint's training."""
    if not (args.data or grounding.data_dir):
        raise UserError(f"{args.ckpt} does not name the dataset that it was trained on; give --data DIR.")
    return args.data or Path(grounding.data_dir)


def data_of_predictions(args: argparse.Namespace, files: list[Path]) -> tuple[Path, str]:
    """(prepared dataset, split) of predictions: those of the options, by default those in the metrics.json next to them.

    With --predictions --data and no --split, the split is chosen by `choose_split` alone.
    """
    if args.data and args.predictions:
        return args.data, choose_split(args.data, args.split)
    data = args.data or agreed_provenance(files, "data")
    if data is None:
        raise UserError("there is no metrics.json next to these predictions to name their dataset; give --data DIR.")
    return Path(data), choose_split(Path(data), args.split or agreed_provenance(files, "split"))


def choose_split(data_dir: Path, wanted: str | None) -> str:
    """The wanted split, by default test. If there is no test split, validation, with a note on stderr."""
    wanted, splits = wanted or "test", read_info(data_dir)["splits"]
    if wanted in splits and splits[wanted]["images"]:
        return wanted
    if wanted == "test" and "validation" in splits and splits["validation"]["images"]:
        print(f"note: {data_dir} has no test split; evaluating on validation", file=sys.stderr)
        return "validation"
    raise UserError(f"{data_dir} has no images in split {wanted!r}; it has {', '.join(splits)}.")


def agreed_provenance(files: list[Path], key: str) -> str | None:
    """The value of `key` in the metrics.json next to each predictions file; None if none of them has one.

    Raises UserError if they differ.
    """
    found: dict[Path, str | None] = {}
    for path in files:
        metrics = path.with_name("metrics.json")
        if metrics.is_file():
            with reading(str(metrics), "Evaluate again, or give --data DIR and --split."):
                value = json.loads(metrics.read_text(encoding="utf-8"))["provenance"].get(key)
                if not isinstance(value, str | None):
                    raise ValueError(f"{key} must be a string, got {value!r}")
                found[path] = value
    values = {value for value in found.values() if value is not None}
    if len(values) > 1:
        raise UserError(
            f"these runs differ in {key}; compare runs with the same one, or give --{key}:",
            [f"{path}: {value}" for path, value in found.items()],
        )
    return next(iter(values), None)
