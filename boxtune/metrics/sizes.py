"""How objects of each size fare, by the areas that COCO names: below 32², below 96², and larger, in pixels of the original."""

import numpy as np

from boxtune.data.boxes import COCO_SIZE_LIMITS, COCO_SIZES, box_area
from boxtune.metrics.matching import ImageMatch


def size_scores(records: list[dict], predictions: list[dict], images: list[ImageMatch]) -> dict[str, dict]:
    """{size: truth, tp, fn, recall, mean_iou_gt, fp}. Truth is of its own size, and so are the false positives."""
    truth_boxes, found, ious, false_boxes = [], [], [], []
    for record, prediction, image in zip(records, predictions, images, strict=True):
        hit = {j for _, j, _ in image.pairs}
        counted = sorted(hit | {*image.missed})
        truth_boxes += [record["objects"]["bbox"][j] for j in counted]
        found += [j in hit for j in counted]
        ious += image.ious
        false_boxes += [prediction["objects"]["bbox"][i] for i in image.false]
    truth_size, false_size = (np.digitize(box_area(boxes), COCO_SIZE_LIMITS) for boxes in (truth_boxes, false_boxes))
    found, ious = np.array(found, dtype=bool), np.array(ious)
    return {
        name: _row(found[truth_size == size], ious[truth_size == size], int((false_size == size).sum()))
        for size, name in enumerate(COCO_SIZES)
    }


def _row(found: np.ndarray, ious: np.ndarray, fp: int) -> dict:
    truth, tp = len(found), int(found.sum())
    return {
        "truth": truth,
        "tp": tp,
        "fn": truth - tp,
        "recall": tp / truth if truth else None,
        "mean_iou_gt": float(ious.mean()) if truth else None,
        "fp": fp,
    }
