"""List likely label errors of a prepared dataset, for correction.

    python -m data_prep review DATA --predictions FILE [FILE ...] [--split test] [--out DIR]

Each FILE is the predictions.jsonl of one checkpoint that was not trained on these images: of the
test split, or of the folds of a cross-validation. An image is judged by the files that have a
prediction for it. Four kinds of errors are ranked together: objects without a label, labels
without an object, labels in the wrong place, and labels of the wrong class. The score is the
share of similar cases in which the checkpoints, taken together, agree with the labels.

DIR gets review.html, review.json, and tasks.json with labels.xml for Label Studio. Corrections
come back with `python -m data_prep labelstudio`, and into the dataset with `merge --replace`.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import Prediction, place_column
from boxtune.common.errors import UserError
from boxtune.common.files import path_argument, write_whole
from boxtune.data.dataset import read_info, read_records, read_splits
from boxtune.data.questions import answer_category
from boxtune.data.records import SPLITS, Record
from data_prep.tools.review_page import page_of
from data_prep.tools.review_tasks import write_tasks

if TYPE_CHECKING:
    from boxtune.metrics.label_errors import Candidate

_FILES = ("review.html", "review.json", "tasks.json", "labels.xml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared dataset")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        type=path_argument,
        nargs="+",
        required=True,
        help="predictions.jsonl of checkpoints that were not trained on these images",
    )
    parser.add_argument("--split", choices=SPLITS, help="review this split only (default: all images with predictions)")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=100,
        help="number of candidates on the page and in the tasks (default 100); review.json has all",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=path_argument, help="folder of the results (default: DATA_review next to DATA)"
    )


def main(args: argparse.Namespace) -> None:
    """Write the page, the list and the tasks, and print how many candidates there are."""
    from boxtune.metrics.label_errors import KINDS, find_label_errors

    if args.limit < 1:
        raise UserError(f"--limit {args.limit} must be at least 1.")
    data_dir = args.data.resolve()
    out = args.out or data_dir.with_name(f"{data_dir.name}_review")
    _check_out(out)
    info = read_info(data_dir)
    splits = {args.split: read_records(data_dir, args.split)} if args.split else read_splits(data_dir)
    split_of = {record["id"]: split for split, records in splits.items() for record in records}
    records = [record for members in splits.values() for record in members]
    runs = [_read_run(path, records) for path in args.predictions]
    judged = [sum(prediction is not None for prediction in row) for row in zip(*runs, strict=True)]

    candidates = find_label_errors([_as_asked(record) for record in records], runs)
    entries = [_entry(one, records[one.image], split_of, judged[one.image]) for one in candidates]
    listed = entries[: args.limit]
    counts = Counter(entry["kind"] for entry in entries)
    content = {
        "name": info["name"],
        "predictions": [str(path) for path in args.predictions],
        "images": len(records),
        "reviewed": sum(count > 0 for count in judged),
        "kinds": {kind: counts[kind] for kind in KINDS},
    }
    write_whole(out / "review.html", page_of(content, KINDS, listed, records, data_dir))
    write_whole(
        out / "review.json", json.dumps({**content, "candidates": entries}, ensure_ascii=False, indent=1) + "\n"
    )
    task_count, root = write_tasks(out, listed, records, info["classes"], data_dir)
    _print_results(content, KINDS, out, task_count, root)
    if any(count and split_of[record["id"]] == "train" for record, count in zip(records, judged, strict=True)):
        print(
            "note: images of the train split are reviewed. A checkpoint that was trained on them repeats their errors."
        )


def _check_out(out: Path) -> None:
    """Raise UserError if the results would replace something else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if "review.json" not in names and (taken := names & {*_FILES}):
        raise UserError(f"{out} has {min(taken)}, which is not from this command. Use another folder with --out.")


def _read_run(path: Path, records: list[Record]) -> list[Prediction | None]:
    """The predictions of a file, in the order of the records; None for images that it does not have."""
    predictions, missing = read_predictions(path, records, allow_missing=True)
    if any(place_column(prediction["objects"]) == "point" for prediction in predictions):
        raise UserError(
            f"{path} holds points, which have no place to compare with a label. Use a checkpoint that predicts boxes."
        )
    absent = {*missing}
    return [None if prediction["id"] in absent else prediction for prediction in predictions]


def _as_asked(record: Record) -> Record:
    """The record with all objects ignored that its first question does not ask for."""
    is_boxes, category = answer_category(record["messages"][1]["content"])
    if is_boxes and category is None:
        return record
    objects = record["objects"]
    pairs = zip(objects["category"], objects["ignore"], strict=True)
    ignore = [ignored or not is_boxes or label != category for label, ignored in pairs]
    return record | {"objects": objects | {"ignore": ignore}}


def _entry(candidate: "Candidate", record: Record, split_of: dict[str, str], asked: int) -> dict[str, Any]:
    """A candidate as in review.json. `asked`: how many checkpoints have a prediction for the image."""
    j, objects = candidate.ground_truth, record["objects"]
    return {
        "id": record["id"],
        "split": split_of[record["id"]],
        "kind": candidate.kind,
        "score": round(candidate.score, 4),
        "position": j,
        "label": None if j is None else {"bbox": objects["bbox"][j], "category": objects["category"][j]},
        "suggestion": candidate.box_xyxy and {"bbox": candidate.box_xyxy, "category": candidate.category},
        "checkpoints": candidate.checkpoints,
        "of_checkpoints": asked,
    }


def _print_results(
    content: dict[str, Any], kinds: dict[str, str], out: Path, task_count: int, root: Path | None
) -> None:
    print(f"{content['reviewed']} of {content['images']} images have predictions")
    for kind, meaning in kinds.items():
        print(f"{content['kinds'][kind]:6} {kind}: {meaning}")
    print(f"written to {out}: {', '.join(_FILES)}")
    if root:
        print(
            f"Label Studio: start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, create a project with labels.xml as its labeling interface, "
            f"add the images' folder as a local storage, and import tasks.json ({task_count} images)."
        )
