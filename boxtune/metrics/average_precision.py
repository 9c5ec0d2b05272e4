"""COCO average precision of records and predictions in memory, equal to pycocotools (tests/metrics/test_average_precision.py).

As in COCO, ignored ground truth counts as `iscrowd`, at most 100 predictions of a class count in one image, predictions with
equal scores keep their order, and predicted labels that no ground truth box has cost nothing.

Where the parts are: coco_matching.py matches predictions with ground truth, precision_recall.py computes precision, recall and
AP from the matches. This module puts them together.
"""

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.records import Record
from boxtune.metrics.coco_matching import CocoBoxes
from boxtune.metrics.matching import is_click
from boxtune.metrics.precision_recall import RECALLS, CocoResult

# Random orders of the predictions for the AP with constant scores.
ORDERS = 20


def all_classes(records: list[Record], classes: list[str]) -> list[str]:
    """The dataset's classes, followed by other labels of the ground truth in alphabetical order."""
    labels = sorted({label.strip() for record in records for label in record["objects"]["category"]})
    return list(dict.fromkeys([*(name.strip() for name in classes), *labels]))


def evaluate_coco(records: list[Record], predictions: list[Prediction], classes: list[str]) -> CocoResult:
    """COCO precision and recall of `predictions[i]` on `records[i]`; `classes` come from `all_classes`."""
    return CocoBoxes(records, predictions, classes).ranked.accumulate()


def constant_score_ap(boxes: CocoBoxes, seed: int) -> dict[str, float | None]:
    """AP as if all scores were equal: {"mean", "spread"} over 20 random orders of the predictions, drawn with `seed`.

    With equal scores AP depends on the order of the predictions, so the scores are replaced by a random ranking each time.
    `spread` is the standard deviation. The result does not depend on the order of the predictions within an image.
    """
    x, y, width, height = boxes.boxes_xywh.T
    by_place = np.lexsort((height, width, y, x, boxes.category, boxes.image))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(ORDERS):
        by_score = np.empty_like(by_place)
        by_score[len(by_place) - 1 - generator.permutation(len(by_place))] = by_place
        values.append(boxes.matcher.match(by_score).accumulate().ap())
    defined = [value for value in values if value is not None]
    if not defined:  # no ground truth
        return {"mean": None, "spread": None}
    return {"mean": float(np.mean(defined)), "spread": float(np.std(defined))}


def curves(
    records: list[Record], predictions: list[Prediction], classes: list[str], boxes: CocoBoxes | None = None
) -> dict[str, dict[str, list[float]]]:
    """Precision over recall at IoU 0.5, for classes with ground truth; empty for points.

    {class: {"recall": 101 values from 0 to 1, "precision": the interpolated precision at each recall}}.
    """
    if is_click(predictions):
        return {}
    classes = all_classes(records, classes)
    boxes = boxes or CocoBoxes(records, predictions, classes)
    precision = boxes.ranked.accumulate().precision[0]  # (101, classes)
    return {
        name: {"recall": RECALLS.tolist(), "precision": precision[:, number].tolist()}
        for number, name in enumerate(classes)
        if precision[0, number] > -1
    }
