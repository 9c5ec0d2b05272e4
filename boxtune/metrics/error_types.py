"""The type of each false positive, after TIDE (Bolya et al., arXiv 2008.08115), and the confusion matrix of the classes."""

from collections import Counter

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.records import Record
from boxtune.metrics.matching import ImageMatch, match_best_first, maximum_matching, point_in_box, same_label
from boxtune.metrics.pairs import FlatSplit, flatten_split

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
    if "point" in prediction["objects"]:
        return _point_types(record, prediction, image, classes)
    kinds = unmatched_types(flatten_split([record], [prediction], classes), iou_threshold)
    return {i: [*ERROR_TYPES][kinds[i]] for i in image.false_positives}


def unmatched_types(split: FlatSplit, iou_threshold: float) -> np.ndarray:
    """(N,) position in ERROR_TYPES: the error type of each prediction of the split if it matches nothing.

    Where it overlaps an object enough for a match, another prediction matches that object.
    """
    pairs, iou, is_same = split.counted_overlaps
    is_enough = iou >= iou_threshold
    kinds = [*ERROR_TYPES]
    types = np.full(len(split.predicted.label), kinds.index("background"))
    for kind, where in (  # a later type takes precedence
        ("localisation", pairs.prediction[is_same & (iou >= BACKGROUND_IOU)]),
        ("wrong_class", pairs.prediction[~is_same & is_enough]),
        ("duplicate", pairs.prediction[is_same & is_enough]),
        ("unknown_label", split.predicted.label >= split.class_count),
    ):
        types[where] = kinds.index(kind)
    return types


def _point_types(record: Record, prediction: Prediction, image: ImageMatch, classes: list[str]) -> dict[int, str]:
    gt = record["objects"]
    counted = [j for j, is_ignored in enumerate(gt["ignore"]) if not is_ignored]
    labels = [prediction["objects"]["category"][i] for i in image.false_positives]
    is_same_class = same_label(labels, [gt["category"][j] for j in counted])
    is_inside = _points_inside(prediction, image.false_positives, record, counted)
    known, duplicates = {*classes}, {*image.duplicates}
    types = {}
    for row, i in enumerate(image.false_positives):
        if labels[row].strip() not in known:
            types[i] = "unknown_label"
        elif i in duplicates:
            types[i] = "duplicate"
        else:
            types[i] = "wrong_class" if is_inside[row][~is_same_class[row]].any() else "background"
    return types


def count_error_types(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
    split: FlatSplit | None = None,
) -> dict[str, int]:
    """{error type: number of false positives}, with every key of ERROR_TYPES. `split` as in `score`; None for points."""
    counts: Counter[str] = Counter()
    if split:
        types = unmatched_types(split, iou_threshold)[_positions(split.predicted.image, images, "false_positives")]
        counts.update(dict(zip(ERROR_TYPES, np.bincount(types, minlength=len(ERROR_TYPES)).tolist(), strict=True)))
    else:
        for record, prediction, image in zip(records, predictions, images, strict=True):
            counts.update(error_types(record, prediction, image, classes, iou_threshold).values())
    return {kind: counts[kind] for kind in ERROR_TYPES}


def _positions(flat_image: np.ndarray, images: list[ImageMatch], name: str) -> np.ndarray:
    """The positions in the flat arrays of the predictions or ground truth boxes that a field of ImageMatch lists."""
    first = np.searchsorted(flat_image, np.arange(len(images))).tolist()
    rows = zip(first, images, strict=True)
    return np.array([start + i for start, image in rows for i in getattr(image, name)], dtype=np.int64)


def confusion(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
    split: FlatSplit | None = None,
) -> dict:
    """The confusion matrix {"rows", "columns", "matrix"}: ground truth in rows, predictions in columns.

    The diagonal holds the true positives. The false positives and the missed ground truth of an image are then matched again
    regardless of class: highest IoU first, down to `iou_threshold`; points so that as many as possible match. What remains
    is counted in the row or column "background". So each row sums to the ground truth boxes of its class, and each column to
    its predictions that count.

    `classes` contains every ground truth label. Predictions with other labels are counted in the column "unknown label".
    `split` as in `score`; None for points.
    """
    rows, columns = [*classes, BACKGROUND], [*classes, UNKNOWN_LABEL, BACKGROUND]
    numbers = {name: number for number, name in enumerate(classes)}
    matrix = np.zeros((len(rows), len(columns)), dtype=np.int64)
    confused = _confused_boxes(split, images, iou_threshold) if split else None
    for n, (record, prediction, image) in enumerate(zip(records, predictions, images, strict=True)):
        row_of = [numbers[label.strip()] for label in record["objects"]["category"]]
        column_of = [numbers.get(label.strip(), len(classes)) for label in prediction["objects"]["category"]]
        pairs = confused.get(n, []) if confused is not None else confused_points(record, prediction, image)
        for i, j in [*((i, j) for i, j, _ in image.pairs), *pairs]:
            matrix[row_of[j], column_of[i]] += 1
        for i in {*image.false_positives} - {i for i, _ in pairs}:
            matrix[-1, column_of[i]] += 1
        for j in {*image.missed} - {j for _, j in pairs}:
            matrix[row_of[j], -1] += 1
    return {"rows": rows, "columns": columns, "matrix": matrix.tolist()}


def _confused_boxes(
    split: FlatSplit, images: list[ImageMatch], iou_threshold: float
) -> dict[int, list[tuple[int, int]]]:
    """{image: one-to-one pairs (prediction, ground truth box) of its false positives and missed boxes, whatever their class}."""
    is_false, is_missed = np.zeros(len(split.predicted.image), dtype=bool), np.zeros(len(split.gt.image), dtype=bool)
    is_false[_positions(split.predicted.image, images, "false_positives")] = True
    is_missed[_positions(split.gt.image, images, "missed")] = True
    pairs, iou, _ = split.counted_overlaps
    chosen = is_false[pairs.prediction] & is_missed[pairs.gt] & (iou >= iou_threshold)
    partner, _ = match_best_first(pairs.select(chosen), iou[chosen], gt_count=len(is_missed))
    found: dict[int, list[tuple[int, int]]] = {}
    gt = np.flatnonzero(partner >= 0)
    image = split.gt.image[gt]
    first, first_gt = (np.searchsorted(side.image, image) for side in (split.predicted, split.gt))
    for n, i, j in zip(image.tolist(), (partner[gt] - first).tolist(), (gt - first_gt).tolist(), strict=True):
        found.setdefault(n, []).append((i, j))
    return found


def confused_points(record: Record, prediction: Prediction, image: ImageMatch) -> list[tuple[int, int]]:
    """The same for the points of one image."""
    if not (image.false_positives and image.missed):
        return []
    pairs = maximum_matching(_points_inside(prediction, image.false_positives, record, image.missed))
    return [(image.false_positives[i], image.missed[j]) for i, j in pairs]


def _points_inside(prediction: Prediction, chosen: list[int], record: Record, gt_chosen: list[int]) -> np.ndarray:
    """(chosen, gt_chosen) bool: whether these points are inside these ground truth boxes."""
    points = [prediction["objects"]["point"][i] for i in chosen]
    return point_in_box(points, [record["objects"]["bbox"][j] for j in gt_chosen])
