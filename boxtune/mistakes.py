"""What kind of mistake a false positive is, after TIDE (Bolya et al., arXiv 2008.08115)."""

import numpy as np

from boxtune.boxes import box_iou
from boxtune.matching import ImageScore, point_in_box, same_label

# The kinds and what they mean, in the order in which they are tried.
MISTAKES = {
    "unknown_label": "its label is none of the data set's classes",
    "duplicate": "its truth is found already, by a better box",
    "wrong_class": "it lies on truth of another class",
    "localisation": "it overlaps truth of its class, by less than the IoU threshold",
    "background": "there is nothing to find",
}
# What overlaps truth by less has found nothing (TIDE's background threshold).
BACKGROUND_IOU = 0.1


def mistakes(
    record: dict, prediction: dict, image: ImageScore, classes: list[str], iou_threshold: float
) -> dict[int, str]:
    """{prediction: kind} of the image's false positives, a key of MISTAKES each. Ignored truth counts for nothing.

    `image` is how `prediction` fared on `record`, at `iou_threshold`. A point lies on a box or it does not, so no point is
    a mistake of localisation.
    """
    truth, answers = record["objects"], prediction["objects"]
    counted = [j for j, is_ignored in enumerate(truth["ignore"]) if not is_ignored]
    same_class = same_label(answers["category"], truth["category"])[:, counted]
    if "point" in answers:
        overlap = point_in_box(answers["point"], truth["bbox"])[:, counted].astype(np.float64)
    else:
        overlap = box_iou(answers["bbox"], truth["bbox"])[:, counted]
    known, duplicates = {*classes}, {*image.duplicates}
    kinds = {}
    for i in image.false:
        if answers["category"][i].strip() not in known:
            kinds[i] = "unknown_label"
        elif i in duplicates:
            kinds[i] = "duplicate"
        elif (overlap[i][~same_class[i]] >= iou_threshold).any():
            kinds[i] = "wrong_class"
        elif (overlap[i][same_class[i]] >= BACKGROUND_IOU).any():
            kinds[i] = "localisation"
        else:
            kinds[i] = "background"
    return kinds
