"""Two runs on the same images: how much their numbers differ, whether that is more than chance, and on which images."""

from dataclasses import dataclass

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.common.errors import UserError
from boxtune.data.records import Record
from boxtune.metrics.average_precision import all_classes
from boxtune.metrics.bootstrap import bootstrap, interval
from boxtune.metrics.coco_matching import CocoBoxes
from boxtune.metrics.matching import ImageMatch, is_click, match_images
from boxtune.metrics.scoring import mean_iou, total_rates

# The numbers that are compared.
VALUES = ("AP", "AP50", "f1", "mean_iou_gt", "fp", "fn")
# Mean IoUs of an image that differ by no more than this are equal, because coordinates of predictions are rounded.
TIE = 0.001


def compare(
    records: list[Record],
    predictions_a: list[Prediction],
    predictions_b: list[Prediction],
    classes: list[str],
    seed: int = 0,
) -> dict:
    """The content of comparison.json. `predictions_a[i]` and `predictions_b[i]` belong to `records[i]`.

    values: {"AP", "AP50", "f1", "mean_iou_gt", "fp", "fn"}, each {"A", "B", "difference": B − A, "interval"}. The interval is
    the 95 % percentile interval of the difference over 300 bootstrap draws of images; both runs are scored on the same draws.
    outcome: the number of images that B won, lost and tied. The run with fewer errors (FP + FN) wins an image; with equal
    errors, the one whose mean IoU over the ground truth boxes is higher by more than 0.001.
    images: those that are not tied, the largest difference in errors first, then the largest difference in IoU.

    Undefined values are None. Raises UserError if one run has points and the other has boxes.
    """
    if is_click(predictions_a) != is_click(predictions_b):
        raise UserError(
            "one run predicts points and the other predicts boxes, so there are no numbers to compare. "
            "Compare two runs of the same kind."
        )
    classes = all_classes(records, classes)
    a = evaluate_run(records, predictions_a, classes, seed)
    b = evaluate_run(records, predictions_b, classes, seed)
    decided = _decided_images(a.images, b.images)
    return {
        "values": {key: _compare_value(key, a, b) for key in VALUES},
        "outcome": {
            "won": sum(row["winner"] == "B" for row in decided),
            "lost": sum(row["winner"] == "A" for row in decided),
            "tied": len(records) - len(decided),
        },
        "images": decided,
    }


@dataclass(frozen=True)
class Run:
    """One run's numbers (VALUES), the same numbers for each bootstrap draw, and the match of each image."""

    values: dict[str, float | int | None]
    samples: dict[str, np.ndarray]
    images: list[ImageMatch]


def evaluate_run(records: list[Record], predictions: list[Prediction], classes: list[str], seed: int) -> Run:
    """`classes`: all of them, also those that only the records name (all_classes). `seed`: of the bootstrap draws."""
    images = match_images(records, predictions)
    rates = total_rates(images)
    values = {
        "AP": None,
        "AP50": None,
        "mean_iou_gt": mean_iou(images),
        **{key: rates[key] for key in ("f1", "fp", "fn")},
    }
    matches = None
    if not is_click(predictions):
        boxes = CocoBoxes(records, predictions, classes)
        matches = boxes.match(boxes.scores)
        result = matches.accumulate()
        values |= {"AP": result.ap(), "AP50": result.ap(threshold=0)}
    return Run(values=values, samples=bootstrap(matches, images, seed), images=images)


def _compare_value(key: str, a: Run, b: Run) -> dict:
    before, after = a.values[key], b.values[key]
    return {
        "A": before,
        "B": after,
        "difference": None if before is None or after is None else after - before,
        "interval": interval(b.samples[key] - a.samples[key]),
    }


def _decided_images(images_a: list[ImageMatch], images_b: list[ImageMatch]) -> list[dict]:
    """The images that one of the runs won, the largest difference first."""
    rows = []
    for a, b in zip(images_a, images_b, strict=True):
        fewer_errors = a.errors - b.errors
        higher_iou = (b.mean_iou or 0.0) - (a.mean_iou or 0.0)
        if fewer_errors or abs(higher_iou) > TIE:
            rows.append(
                {
                    "id": a.id,
                    "winner": "B" if (fewer_errors or higher_iou) > 0 else "A",
                    "errors": [a.errors, b.errors],
                    "mean_iou": [a.mean_iou, b.mean_iou],
                }
            )

    def sort_key(row: dict) -> tuple[float, float]:
        errors_a, errors_b = row["errors"]
        iou_a, iou_b = (iou or 0.0 for iou in row["mean_iou"])
        return -abs(errors_a - errors_b), -abs(iou_a - iou_b)

    return sorted(rows, key=sort_key)
