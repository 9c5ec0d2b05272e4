"""How many planted label errors are among the first candidates of `data_prep review`:

    python -m benchmarks.label_errors DATA --predictions FILE... [--draws 20] [--first 20] [--out DIR]
    python -m benchmarks.label_errors DATA --simulated 0.9 [--draws 20] [--first 20]

DATA is a prepared dataset, and each file has predictions for some or all of its images. In each draw, two errors of each kind are
planted into the images that have predictions, each into another image: a label is deleted, a label is added where there is none,
a label is shifted by a third of its width or height (IoU 0.5), and a label gets another class (if there are several). The
predictions were made before, so the planted errors cannot have influenced them.

With --simulated, predictions are drawn from the labels instead: each object is found with this probability, gets its own class
with this probability, and there are wrong boxes for the rest. --out keeps the dataset of the first draw and its review.
"""

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.folds import with_absolute_image
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import Prediction, without_text
from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument
from boxtune.data.boxes import box_iou
from boxtune.data.dataset import read_info, read_splits, write_dataset
from boxtune.data.records import Record, as_objects, object_columns
from boxtune.metrics.label_errors import FOUND_IOU, KINDS, Candidate, find_label_errors
from boxtune.metrics.matching import match_images
from data_prep.command import prepare_from_words

EACH = 2  # planted errors of each kind
_TRIES = 200

Box = list[float]
Run = list[Prediction | None]


# ---- planting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """An error in the record `id`. box_xyxy: the deleted box of "missing", else the box as it is labeled now."""

    id: str
    kind: str
    box_xyxy: Box


def plant(records: Sequence[Record], classes: Sequence[str], seed: int) -> tuple[list[Record], list[Planted]]:
    """(the records with EACH errors of each kind, the errors). With a single class there are no swapped labels."""
    rng = random.Random(seed)
    changed = {record["id"]: record for record in records}
    planted: list[Planted] = []
    for kind in KINDS:
        if kind == "swapped" and len(classes) < 2:
            continue
        left = [record for record in records if record["id"] not in {error.id for error in planted}]
        rng.shuffle(left)
        results = (result for record in left if (result := _with_error(record, kind, classes, rng)))
        for _, (record, box_xyxy) in zip(range(EACH), results, strict=False):
            changed[record["id"]] = record
            planted.append(Planted(record["id"], kind, box_xyxy))
    return list(changed.values()), planted


def _with_error(record: Record, kind: str, classes: Sequence[str], rng: random.Random) -> tuple[Record, Box] | None:
    """(the record with an error at one of its objects, the box of the error); None if there is no place for one."""
    columns = {key: list(column) for key, column in object_columns(record["objects"]).items()}
    boxes: list[Box] = columns["bbox"]
    if not boxes:
        return None
    j = rng.randrange(len(boxes))
    box_xyxy = boxes[j]
    if kind == "missing":
        columns = {key: column[:j] + column[j + 1 :] for key, column in columns.items()}
    elif kind == "swapped":
        columns["category"][j] = rng.choice([name for name in classes if name != columns["category"][j]])
    elif kind == "moved":
        others = boxes[:j] + boxes[j + 1 :]
        place = _place([_shifted(box_xyxy, rng)], others, record, FOUND_IOU)
        if place is None:
            return None
        boxes[j] = box_xyxy = place
    else:
        place = _place([_anywhere(box_xyxy, record, rng) for _ in range(_TRIES)], boxes, record, 0.1)
        if place is None:
            return None
        columns = {key: [*column, column[j]] for key, column in columns.items()}
        columns["bbox"][-1] = box_xyxy = place
    return record | {"objects": as_objects(columns)}, box_xyxy


def _shifted(box_xyxy: Box, rng: random.Random) -> Box:
    x0, y0, x1, y1 = box_xyxy
    dx, dy = (x1 - x0) / 3, (y1 - y0) / 3
    dx, dy = rng.choice([(dx, 0), (-dx, 0), (0, dy), (0, -dy)])
    return [x0 + dx, y0 + dy, x1 + dx, y1 + dy]


def _anywhere(box_xyxy: Box, record: Record, rng: random.Random) -> Box:
    width, height = box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]
    x, y = rng.uniform(0, record["width"] - width), rng.uniform(0, record["height"] - height)
    return [x, y, x + width, y + height]


def _place(places: list[Box], others: list[Box], record: Record, max_iou: float) -> Box | None:
    """The first of the places that is inside the image and overlaps no other label more than `max_iou`."""
    for place in places:
        x0, y0, x1, y1 = box_xyxy = [round(value, 1) for value in place]
        is_inside = min(x0, y0) >= 0 and x1 <= record["width"] and y1 <= record["height"]
        if is_inside and box_iou([box_xyxy], others).max(initial=0.0) < max_iou:
            return box_xyxy
    return None


def is_found(error: Planted, candidate: Candidate, records: Sequence[Record]) -> bool:
    """Whether a candidate names this error: its image, its kind and its box."""
    record = records[candidate.image]
    if (record["id"], candidate.kind) != (error.id, error.kind):
        return False
    if candidate.ground_truth is None:
        return bool(box_iou([candidate.box_xyxy or []], [error.box_xyxy])[0, 0] >= FOUND_IOU)
    return record["objects"]["bbox"][candidate.ground_truth] == error.box_xyxy


# ---- predictions ---------------------------------------------------------------------------------------------------------


def read_run(path: Path, records: list[Record]) -> Run:
    """The predictions of a file; None for images that it does not have."""
    predictions, missing = read_predictions(path, records, allow_missing=True)
    absent = {*missing}
    return [None if prediction["id"] in absent else prediction for prediction in predictions]


def simulate(records: Sequence[Record], classes: Sequence[str], quality: float, seed: int) -> Run:
    """Predictions drawn from the labels; see the top of this file."""
    rng = random.Random(f"{seed} {quality}")
    return [_simulated(record, classes, quality, rng) for record in records]


def _simulated(record: Record, classes: Sequence[str], quality: float, rng: random.Random) -> Prediction:
    objects = record["objects"]
    columns: dict[str, list] = {"bbox": [], "category": [], "score": []}
    for box_xyxy, label in zip(objects["bbox"], objects["category"], strict=True):
        is_found = rng.random() < quality
        x0, y0, x1, y1 = box_xyxy if is_found else _anywhere(box_xyxy, record, rng)
        dx, dy = 0.04 * (x1 - x0), 0.04 * (y1 - y0)  # an IoU of about 0.85
        moved = [value + rng.gauss(0, side) for value, side in zip((x0, y0, x1, y1), (dx, dy, dx, dy), strict=True)]
        columns["bbox"].append(moved)
        columns["category"].append(label if rng.random() < quality else rng.choice(classes))
        columns["score"].append(rng.uniform(0.5, 1) if is_found else rng.uniform(0.3, 0.8))
    return without_text(record, None, None, columns, [])


def f1_of(records: Sequence[Record], run: Run) -> float:
    """F1 on the images that the run has."""
    pairs = [(record, prediction) for record, prediction in zip(records, run, strict=True) if prediction]
    images = match_images([record for record, _ in pairs], [prediction for _, prediction in pairs])
    tp, errors = sum(image.tp for image in images), sum(image.errors for image in images)
    return 2 * tp / max(1, 2 * tp + errors)


# ---- the measurement -----------------------------------------------------------------------------------------------------


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=path_argument)
    predictions = parser.add_mutually_exclusive_group(required=True)
    predictions.add_argument("--predictions", metavar="FILE", type=path_argument, nargs="+")
    predictions.add_argument("--simulated", metavar="P", type=float)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--out", metavar="DIR", type=path_argument)
    args = parser.parse_args()
    if args.simulated is not None and args.out:
        raise UserError("--out needs --predictions: simulated predictions are in no file that a review could read.")

    classes = read_info(args.data)["classes"]
    records = [with_absolute_image(record, args.data) for split in read_splits(args.data).values() for record in split]
    if args.predictions:
        runs = [read_run(path, records) for path in args.predictions]
    else:
        runs = [simulate(records, classes, args.simulated, seed) for seed in range(3)]
    chosen = [i for i, row in enumerate(zip(*runs, strict=True)) if any(row)]
    records, runs = [records[i] for i in chosen], [[run[i] for i in chosen] for run in runs]
    print(f"{len(records)} images; F1 {', '.join(f'{f1_of(records, run):.3f}' for run in runs)}")

    planted_counts, found_counts, listed_counts = Counter[str](), Counter[str](), Counter[str]()
    for seed in range(args.draws):
        changed, planted = plant(records, classes, seed)
        if seed == 0 and args.out:
            _write_review(args.out, changed, classes, args.predictions)
        first = find_label_errors(changed, runs)[: args.first]
        found = [error for error in planted if any(is_found(error, candidate, changed) for candidate in first)]
        planted_counts.update(error.kind for error in planted)
        found_counts.update(error.kind for error in found)
        listed_counts.update(candidate.kind for candidate in first)
        print(f"draw {seed}: {len(found)} of {len(planted)} planted errors are among the first {len(first)} candidates")

    table = Table(
        "kind", "planted", "found", f"of all first {args.first}", title=f"{args.draws} draws", title_justify="left"
    )
    for kind in KINDS:
        table.add_row(kind, *(str(counts[kind]) for counts in (planted_counts, found_counts, listed_counts)))
    table.add_row("all", *(str(counts.total()) for counts in (planted_counts, found_counts, listed_counts)))
    Console().print(table)


def _write_review(out: Path, records: list[Record], classes: list[str], predictions: list[Path]) -> None:
    """The changed records as a prepared dataset, and what `data_prep review` says about it."""
    splits = {"test": records}
    data = out / "data"
    write_dataset(
        data, name="planted", source_format="planted", classes=classes, splits=splits, problems=[], overwrite=True
    )
    prepare_from_words(["review", str(data), "--predictions", *map(str, predictions), "--out", str(out / "review")])


if __name__ == "__main__":
    main()
