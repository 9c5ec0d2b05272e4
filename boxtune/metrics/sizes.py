"""Results by object size, with COCO's limits: areas below 32², below 96² and larger, in pixels of the original image."""

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import COCO_SIZE_LIMITS, COCO_SIZES, box_area
from boxtune.data.records import Record
from boxtune.metrics.matching import ImageMatch


def size_scores(records: list[Record], predictions: list[Prediction], images: list[ImageMatch]) -> dict[str, dict]:
    """{size: truth, tp, fn, recall, mean_iou_gt, fp}.

    The size is that of the ground truth box; for false positives, that of the predicted box.
    """
    gt_boxes, is_matched, gt_ious, false_boxes = [], [], [], []
    for record, prediction, image in zip(records, predictions, images, strict=True):
        matched = {j for _, j, _ in image.pairs}
        counted = sorted(matched | {*image.missed})
        gt_boxes += [record["objects"]["bbox"][j] for j in counted]
        is_matched += [j in matched for j in counted]
        gt_ious += image.ious
        false_boxes += [prediction["objects"]["bbox"][i] for i in image.false_positives]
    gt_size, false_size = (np.digitize(box_area(boxes), COCO_SIZE_LIMITS) for boxes in (gt_boxes, false_boxes))
    matched_array, iou_array = np.array(is_matched, dtype=bool), np.array(gt_ious)
    return {
        name: _summary(matched_array[gt_size == size], iou_array[gt_size == size], fp=int((false_size == size).sum()))
        for size, name in enumerate(COCO_SIZES)
    }


def _summary(is_matched: np.ndarray, gt_ious: np.ndarray, fp: int) -> dict:
    """The row of one size; is_matched, gt_ious: (ground truth boxes of this size,)."""
    gt_boxes, tp = len(is_matched), int(is_matched.sum())
    return {
        "truth": gt_boxes,
        "tp": tp,
        "fn": gt_boxes - tp,
        "recall": tp / gt_boxes if gt_boxes else None,
        "mean_iou_gt": float(gt_ious.mean()) if gt_boxes else None,
        "fp": fp,
    }
