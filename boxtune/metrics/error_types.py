"""What kind of mistake a false positive is, after TIDE (Bolya et al., arXiv 2008.08115), and which class is taken for which."""

from collections import Counter

import numpy as np

from boxtune.data.boxes import box_iou, match_greedy
from boxtune.metrics.matching import ImageMatch, match_most, point_in_box, same_label

# The kinds and what they mean, in the order in which they are tried.
ERROR_TYPES = {
    "unknown_label": "its label is none of the data set's classes",
    "duplicate": "its truth is found already, by a better box",
    "wrong_class": "it lies on truth of another class",
    "localisation": "it overlaps truth of its class, by less than the IoU threshold",
    "background": "there is nothing to find",
}
# What overlaps truth by less has found nothing (TIDE's background threshold).
BACKGROUND_IOU = 0.1
# The confusion matrix's names for what no class names.
BACKGROUND, UNKNOWN_LABEL = "background", "unknown label"


def error_types(
    record: dict, prediction: dict, image: ImageMatch, classes: list[str], iou_threshold: float
) -> dict[int, str]:
    """{prediction: kind} of the image's false positives, a key of ERROR_TYPES each. Ignored truth counts for nothing.

    `image` is how `prediction` fared on `record`, at `iou_threshold`. A point lies on a box or it does not, so no point is
    a mistake of localisation.
    """
    if not image.false:
        return {}
    truth, answers = record["objects"], prediction["objects"]
    counted = [j for j, is_ignored in enumerate(truth["ignore"]) if not is_ignored]
    labels = [answers["category"][i] for i in image.false]
    same_class = same_label(labels, [truth["category"][j] for j in counted])
    overlap = overlap_with(prediction, image.false, record, counted)
    known, duplicates = {*classes}, {*image.duplicates}
    kinds = {}
    for row, i in enumerate(image.false):
        if labels[row].strip() not in known:
            kinds[i] = "unknown_label"
        elif i in duplicates:
            kinds[i] = "duplicate"
        elif (overlap[row][~same_class[row]] >= iou_threshold).any():
            kinds[i] = "wrong_class"
        elif (overlap[row][same_class[row]] >= BACKGROUND_IOU).any():
            kinds[i] = "localisation"
        else:
            kinds[i] = "background"
    return kinds


def count_error_types(
    records: list[dict], predictions: list[dict], images: list[ImageMatch], classes: list[str], iou_threshold: float
) -> dict[str, int]:
    """{kind: how many of all false positives}, with every kind of ERROR_TYPES."""
    found = zip(records, predictions, images, strict=True)
    counts = Counter(kind for fared in found for kind in error_types(*fared, classes, iou_threshold).values())
    return {kind: counts[kind] for kind in ERROR_TYPES}


def confusion(
    records: list[dict], predictions: list[dict], images: list[ImageMatch], classes: list[str], iou_threshold: float
) -> dict:
    """Which class was taken for which: {"rows", "columns", "matrix"}, truth by predictions; the true positives on the diagonal.

    The false positives and the missed truth of an image are matched once more, whatever their classes: highest IoU first, from
    `iou_threshold` up; points as many as can be. What is left then stands in the row or in the column "background". So a row
    sums to the truth of its class and a column to its predictions that count. `classes` name all truth; a prediction of
    another name stands in the column "unknown label".
    """
    rows, columns = [*classes, BACKGROUND], [*classes, UNKNOWN_LABEL, BACKGROUND]
    numbers = {name: i for i, name in enumerate(classes)}
    matrix = np.zeros((len(rows), len(columns)), dtype=np.int64)
    for record, prediction, image in zip(records, predictions, images, strict=True):
        row = [numbers[label.strip()] for label in record["objects"]["category"]]
        column = [numbers.get(label.strip(), len(classes)) for label in prediction["objects"]["category"]]
        confused = _confused(record, prediction, image, iou_threshold)
        for i, j in [*((i, j) for i, j, _ in image.pairs), *confused]:
            matrix[row[j], column[i]] += 1
        for i in {*image.false} - {i for i, _ in confused}:
            matrix[-1, column[i]] += 1
        for j in {*image.missed} - {j for _, j in confused}:
            matrix[row[j], -1] += 1
    return {"rows": rows, "columns": columns, "matrix": matrix.tolist()}


def _confused(record: dict, prediction: dict, image: ImageMatch, iou_threshold: float) -> list[tuple[int, int]]:
    """(prediction, truth) of the false positives and the missed truth that lie on each other."""
    if not (image.false and image.missed):
        return []
    overlap = overlap_with(prediction, image.false, record, image.missed)
    is_click = "point" in prediction["objects"]
    pairs = match_most(overlap > 0) if is_click else match_greedy(overlap, iou_threshold)
    return [(image.false[i], image.missed[j]) for i, j in pairs]


def overlap_with(prediction: dict, chosen: list[int], record: dict, truth: list[int]) -> np.ndarray:
    """(chosen, truth): the IoU of these of the prediction's boxes with these of the record's; of a point, 1 inside a box."""
    boxes = [record["objects"]["bbox"][j] for j in truth]
    if "point" in prediction["objects"]:
        return point_in_box([prediction["objects"]["point"][i] for i in chosen], boxes).astype(np.float64)
    return box_iou([prediction["objects"]["bbox"][i] for i in chosen], boxes)
