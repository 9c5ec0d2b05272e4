"""Why ground truth boxes are missed: the counterpart of the error types of false positives."""

from collections import Counter

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.records import Record
from boxtune.metrics.error_types import BACKGROUND_IOU
from boxtune.metrics.matching import ImageMatch, point_in_box, same_label
from boxtune.metrics.pairs import FlatSplit, flatten_column

# Causes and their meanings. A missed ground truth box gets the first cause that applies.
MISS_CAUSES = {
    "taken": "a box of its class is on the object, but matches another object",
    "wrong_class": "a box of another class is on the object",
    "localisation": "a box of its class overlaps the object, but its IoU is below the threshold",
    "no_box": "no box of its class is near the object, and no other box is on it",
}
# The causes that a prediction shows. Without any of them, there is no box.
SHOWN_CAUSES = tuple(MISS_CAUSES)[:-1]
# The score of a cause that no prediction shows. Scores are at least 0.
NEVER = -1.0


def cause_scores(
    records: list[Record], predictions: list[Prediction], iou_threshold: float, split: FlatSplit | None = None
) -> np.ndarray:
    """(len(SHOWN_CAUSES), M) the highest score of a prediction that shows the cause for each ground truth box, or NEVER.

    So with a minimum score, the cause of a missed box is the first one whose score reaches the minimum. Boxes that are not
    missed have scores too. `split` comes from `flatten_split`; None for points, for which a box is never badly localised.
    """
    score = flatten_column((prediction["objects"]["score"] for prediction in predictions), np.float64)
    if split is None:
        return _point_cause_scores(records, predictions)
    pairs, iou, is_same = split.counted_overlaps
    scores = np.full((len(SHOWN_CAUSES), len(split.gt.image)), NEVER)
    is_on, is_near = iou >= iou_threshold, iou >= BACKGROUND_IOU
    shows = {"taken": is_same & is_on, "wrong_class": ~is_same & is_on, "localisation": is_same & is_near & ~is_on}
    for k, cause in enumerate(SHOWN_CAUSES):
        chosen = shows[cause]
        np.maximum.at(scores[k], pairs.gt[chosen], score[pairs.prediction[chosen]])
    return scores


def _point_cause_scores(records: list[Record], predictions: list[Prediction]) -> np.ndarray:
    columns = [np.zeros((len(SHOWN_CAUSES), 0))]
    for record, prediction in zip(records, predictions, strict=True):
        gt, predicted = record["objects"], prediction["objects"]
        is_inside = point_in_box(predicted["point"], gt["bbox"])
        is_same = same_label(predicted["category"], gt["category"])
        score = np.array(predicted["score"], dtype=np.float64)[:, None]
        scores = np.full((len(SHOWN_CAUSES), len(gt["category"])), NEVER)
        for cause, shown in (("taken", is_inside & is_same), ("wrong_class", is_inside & ~is_same)):
            scores[SHOWN_CAUSES.index(cause)] = np.where(shown, score, NEVER).max(axis=0, initial=NEVER)
        columns.append(scores)
    return np.concatenate(columns, axis=1)


def count_miss_causes(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    iou_threshold: float,
    split: FlatSplit | None = None,
) -> dict[str, int]:
    """{cause: number of missed ground truth boxes}, with every key of MISS_CAUSES. `split` as in `cause_scores`."""
    is_shown = cause_scores(records, predictions, iou_threshold, split) > NEVER
    first_cause = np.where(is_shown.any(axis=0), is_shown.argmax(axis=0), len(SHOWN_CAUSES)).tolist()
    causes, counts, first = [*MISS_CAUSES], Counter[str](), 0
    for record, image in zip(records, images, strict=True):
        counts.update(causes[first_cause[first + j]] for j in image.missed)
        first += len(record["objects"]["category"])
    return {cause: counts[cause] for cause in MISS_CAUSES}
