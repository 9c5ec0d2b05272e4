"""Make a prepared dataset of the boxes that a checkpoint finds in a folder of images.

    python -m data_prep pseudo-label --ckpt runs/NAME/final --images FOLDER --out OUT
    python -m data_prep pseudo-label --predictions FILE --images FOLDER --out OUT

Boxes with a score of at least --min-score become objects with the columns `source` ("pseudo") and
`score`. All images are in the train split, because scores on pseudo-labels would mean little; join
them with a labeled dataset by `merge`. An image in which the checkpoint finds nothing has no
objects. Images are left out, and listed in problems.jsonl, if all their boxes are below
--min-score, or if the response is incomplete.

OUT_predictions, next to OUT, keeps the checkpoint's predictions: an interrupted call continues
there, and --predictions takes the file for another --min-score. evaluate.py --images writes such
files, too.
"""

import argparse
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import INCOMPLETE, Prediction, place_column
from boxtune.answers.selection import LOW_SCORE
from boxtune.common.errors import UserError
from boxtune.common.files import path_argument
from boxtune.common.spinning import limit_spinning
from boxtune.data.dataset import check_writable_target
from boxtune.data.records import Record
from data_prep.command import parse_names
from data_prep.pipeline.convert import write_source
from data_prep.reading.image_finder import list_images
from data_prep.reading.names import relative_name, without_suffix
from data_prep.reading.source import Item, Options, Row, Source, problem
from data_prep.reading.spool import Spool, folder_for_scratch

FORMAT = "pseudo-label"
SOURCE, SCORE = "source", "score"  # the columns of objects


@dataclass
class _Found:
    """What the predictions say. items: the images that are kept, and those that cannot be read, which are listed later."""

    items: list[Item] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    scores: list[float] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--ckpt", metavar="DIR", help="the checkpoint: an adapter, a merged model or a Hub id")
    model.add_argument("--predictions", metavar="FILE", type=path_argument, help="predictions of these images")
    parser.add_argument("--images", metavar="FOLDER", type=path_argument, required=True, help="folder of the images")
    parser.add_argument("--out", metavar="OUT", type=path_argument, required=True, help="folder of the new dataset")
    parser.add_argument("--min-score", metavar="S", type=float, default=0.6, help="least score of a box (default 0.6)")
    parser.add_argument(
        "--classes",
        metavar="A,B",
        type=parse_names,
        help="classes to ask for, in this order (default: those of the checkpoint; of --predictions, all by name)",
    )
    parser.add_argument(
        "--server", metavar="URL", help="OpenAI-compatible server that runs the checkpoint, such as vLLM"
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="images per batch (default 16)")
    parser.add_argument(
        "--copy-images", action="store_true", help="copy the images into OUT instead of referencing them"
    )
    parser.add_argument("--skip-bad-images", action="store_true", help="skip unreadable images and list them")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset at OUT")


def main(args: argparse.Namespace) -> None:
    """Write the whole dataset, or nothing, and print what was left out."""
    out = Path(os.path.realpath(args.out))
    _check_arguments(args, out)
    if args.ckpt:
        predictions, classes, descriptions = _ask(args, out)
    else:
        predictions, classes, descriptions = _read(args, out), args.classes or [], {}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=folder_for_scratch(out)) as scratch:
        options = Options(
            out=out,
            scratch=Path(scratch),
            classes=classes,
            descriptions=descriptions,
            split_ratio=[100, 0, 0],
            workers=os.cpu_count() or 1,
            copy_images=args.copy_images,
            skip_bad_images=args.skip_bad_images,
            allow_bad_boxes=True,
            overwrite=args.overwrite,
        )
        found = _as_items(predictions, args.images, args.min_score, options)
        items = Spool(options.scratch, found.items)
        source = Source(items, "xyxy", classes=classes, problems=found.problems)
        write_source(FORMAT, args.images, source, options)
    _print_counts(found, args.min_score)


def _check_arguments(args: argparse.Namespace, out: Path) -> None:
    problems = []
    if not 0 <= args.min_score <= 1:
        problems.append(f"--min-score {args.min_score} must be from 0 to 1")
    if args.batch_size < 1:
        problems.append(f"--batch-size {args.batch_size} must be at least 1")
    if not args.images.is_dir():
        problems.append(f"--images {args.images} is not a folder")
    elif args.images.resolve().is_relative_to(out):
        problems.append(f"--images {args.images} is inside {out}, which would be replaced; use another --out")
    if args.predictions and args.server:
        problems.append("--server has no effect with --predictions; leave it out")
    if problems:
        raise UserError("pseudo-label: invalid arguments:", problems)
    check_writable_target(out, args.overwrite)


# ---- predictions ---------------------------------------------------------------------------------------------------------


def _ask(args: argparse.Namespace, out: Path) -> tuple[list[Prediction], list[str], dict[str, str]]:
    """(the checkpoint's predictions for the images, the classes that were asked for, their descriptions)."""
    limit_spinning()
    from boxtune.inference.asking import answer_records
    from boxtune.inference.detector import Detector
    from boxtune.inference.unlabelled import unlabelled_records, warn_of_new_sizes

    detector = Detector.from_pretrained(args.ckpt, server=args.server)
    grounding = detector.checkpoint.grounding
    if grounding.get_codec().is_click:
        raise UserError(f"{args.ckpt} answers with points, so there are no boxes to label images with.")
    classes = args.classes or detector.classes
    descriptions = {name: text for name, text in grounding.descriptions.items() if name in classes}
    records = unlabelled_records(args.images, classes, out, args.skip_bad_images, descriptions)
    warn_of_new_sizes(records, grounding)
    kept = out.with_name(f"{out.name}_predictions")
    answers = answer_records(detector, records, classes, Path(), kept, args.batch_size)
    print(f"predictions: {kept / 'predictions.jsonl'}; for another --min-score, give this file as --predictions")
    return answers.tuned, classes, descriptions


def _read(args: argparse.Namespace, out: Path) -> list[Prediction]:
    """The predictions of a file for the images."""
    from boxtune.inference.unlabelled import unlabelled_records

    records: list[Record] = unlabelled_records(args.images, args.classes or ["object"], out, args.skip_bad_images)
    predictions, _ = read_predictions(args.predictions, records)
    if any(place_column(prediction["objects"]) == "point" for prediction in predictions):
        raise UserError(f"{args.predictions} holds points, so there are no boxes to label images with.")
    return predictions


# ---- objects -------------------------------------------------------------------------------------------------------------


def _as_items(predictions: list[Prediction], images: Path, min_score: float, options: Options) -> _Found:
    """Raises UserError if no box is kept."""
    by_name = {prediction["id"]: prediction for prediction in predictions}
    found = _Found()
    for path in list_images(images, options):
        name = relative_name(path, images)
        prediction = by_name.get(path.relative_to(images).as_posix())
        rows: list[Row] | None = [] if prediction is None else _rows(prediction, without_suffix(name), min_score, found)
        if rows is not None:
            found.items.append(Item(name, str(path.resolve()), rows))
    if not any(item.rows for item in found.items):
        highest = f"the highest is {max(found.scores):.2f}" if found.scores else "the checkpoint finds none"
        raise UserError(
            f"No box in {images} has a score of at least {min_score:g}; {highest}. Nothing was written. Lower --min-score, or "
            "use images and classes that the checkpoint knows."
        )
    return found


def _rows(prediction: Prediction, name: str, min_score: float, found: _Found) -> list[Row] | None:
    """The boxes that become objects; None if the image is left out. `name`: the id that problems have."""
    objects = prediction["objects"]
    if faults := sorted(INCOMPLETE & {*prediction["problems"]}):
        found.counts["incomplete"] += 1
        found.problems.append(problem(name, "incomplete", faults, "image left out"))
        return None
    # The checkpoint's own threshold may have dropped boxes before.
    low: list[Any] = ["below the checkpoint's own threshold"] * prediction["problems"].count(LOW_SCORE)
    rows = []
    for box_xyxy, label, score in zip(objects["bbox"], objects["category"], objects["score"], strict=True):
        found.scores.append(score)
        if score >= min_score:
            rows.append(Row(box_xyxy, label.strip(), extra={SOURCE: "pseudo", SCORE: score}))
        else:
            low.append({"bbox": box_xyxy, "category": label, "score": score})
    found.counts["low"] += len(low)
    action = "object dropped" if rows else "image left out"
    found.problems += [problem(name, LOW_SCORE, value, action) for value in low]
    if low and not rows:
        found.counts["all low"] += 1
        return None
    found.counts["kept"] += len(rows)
    found.counts["empty"] += not rows
    return rows


def _print_counts(found: _Found, min_score: float) -> None:
    counts = found.counts
    print(f"boxes: {counts['kept']} with a score of at least {min_score:g}, {counts['low']} dropped below it")
    print(f"images without a box, which are kept: {counts['empty']}")
    print(
        f"images left out: {counts['all low']} with low scores only, {counts['incomplete']} with an incomplete response"
    )
    if found.scores and min(found.scores) == 1:
        print("note: all scores are 1.0, so --min-score had no effect")
