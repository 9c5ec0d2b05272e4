"""The type of each false positive, after TIDE (Bolya et al., arXiv 2008.08115), and the confusion matrix of the classes."""

from collections import Counter

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_iou, match_greedy
from boxtune.data.records import Record
from boxtune.metrics.matching import ImageMatch, maximum_matching, point_in_box, same_label

# Error types and their meanings. A false positive gets the first type that applies.
ERROR_TYPES = {
    "unknown_label": "the label is not a class of the dataset",
    "duplicate": "another prediction already matches this object",
    "wrong_class": "the box is on an object of another class",
    "localisation": "the box overlaps an object of its class, but its IoU is below the threshold",
    "background": "the box is not on any object",
}
# A prediction with a lower IoU is on background (TIDE's background threshold).
BACKGROUND_IOU = 0.1
# Names of the rows and columns of the confusion matrix that are not classes.
BACKGROUND, UNKNOWN_LABEL = "background", "unknown label"


def error_types(
    record: Record, prediction: Prediction, image: ImageMatch, classes: list[str], iou_threshold: float
) -> dict[int, str]:
    """{position of a false positive in the prediction: its error type, a key of ERROR_TYPES}.

    `image` is the match of `prediction` and `record` at `iou_threshold`. Ignored ground truth has no effect. A point is
    either inside a box or not, so a point is never a localisation error.
    """
    if not image.false_positives:
        return {}
    gt = record["objects"]
    counted = [j for j, is_ignored in enumerate(gt["ignore"]) if not is_ignored]
    labels = [prediction["objects"]["category"][i] for i in image.false_positives]
    is_same_class = same_label(labels, [gt["category"][j] for j in counted])
    overlap = overlap_with(prediction, image.false_positives, record, counted)
    known, duplicates = {*classes}, {*image.duplicates}
    types = {}
    for row, i in enumerate(image.false_positives):
        if labels[row].strip() not in known:
            types[i] = "unknown_label"
        elif i in duplicates:
            types[i] = "duplicate"
        elif (overlap[row][~is_same_class[row]] >= iou_threshold).any():
            types[i] = "wrong_class"
        elif (overlap[row][is_same_class[row]] >= BACKGROUND_IOU).any():
            types[i] = "localisation"
        else:
            types[i] = "background"
    return types


def count_error_types(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
) -> dict[str, int]:
    """{error type: number of false positives}, with every key of ERROR_TYPES."""
    counts: Counter[str] = Counter()
    for record, prediction, image in zip(records, predictions, images, strict=True):
        counts.update(error_types(record, prediction, image, classes, iou_threshold).values())
    return {kind: counts[kind] for kind in ERROR_TYPES}


def confusion(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
) -> dict:
    """The confusion matrix {"rows", "columns", "matrix"}: ground truth in rows, predictions in columns.

    The diagonal holds the true positives. The false positives and the missed ground truth of an image are then matched again
    regardless of class: highest IoU first, down to `iou_threshold`; points so that as many as possible match. What remains
    is counted in the row or column "background". So each row sums to the ground truth boxes of its class, and each column to
    its predictions that count.

    `classes` contains every ground truth label. Predictions with other labels are counted in the column "unknown label".
    """
    rows, columns = [*classes, BACKGROUND], [*classes, UNKNOWN_LABEL, BACKGROUND]
    numbers = {name: number for number, name in enumerate(classes)}
    matrix = np.zeros((len(rows), len(columns)), dtype=np.int64)
    for record, prediction, image in zip(records, predictions, images, strict=True):
        row_of = [numbers[label.strip()] for label in record["objects"]["category"]]
        column_of = [numbers.get(label.strip(), len(classes)) for label in prediction["objects"]["category"]]
        confused = _match_any_class(record, prediction, image, iou_threshold)
        for i, j in [*((i, j) for i, j, _ in image.pairs), *confused]:
            matrix[row_of[j], column_of[i]] += 1
        for i in {*image.false_positives} - {i for i, _ in confused}:
            matrix[-1, column_of[i]] += 1
        for j in {*image.missed} - {j for _, j in confused}:
            matrix[row_of[j], -1] += 1
    return {"rows": rows, "columns": columns, "matrix": matrix.tolist()}


def _match_any_class(
    record: Record, prediction: Prediction, image: ImageMatch, iou_threshold: float
) -> list[tuple[int, int]]:
    """One-to-one pairs (prediction, ground truth box) of the image's false positives and missed boxes, regardless of class."""
    if not (image.false_positives and image.missed):
        return []
    overlap = overlap_with(prediction, image.false_positives, record, image.missed)
    is_click = "point" in prediction["objects"]
    pairs = maximum_matching(overlap > 0) if is_click else match_greedy(overlap, iou_threshold)
    return [(image.false_positives[i], image.missed[j]) for i, j in pairs]


def overlap_with(prediction: Prediction, chosen: list[int], record: Record, gt_chosen: list[int]) -> np.ndarray:
    """(chosen, gt_chosen) IoU of these predicted boxes and these ground truth boxes; for points 1 inside a box, 0 outside."""
    gt_boxes = [record["objects"]["bbox"][j] for j in gt_chosen]
    if "point" in prediction["objects"]:
        return point_in_box([prediction["objects"]["point"][i] for i in chosen], gt_boxes).astype(np.float64)
    return box_iou([prediction["objects"]["bbox"][i] for i in chosen], gt_boxes)
