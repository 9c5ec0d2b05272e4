"""COCO's matching of predictions and ground truth at ten IoU thresholds. The rules are those of `COCOeval.evaluateImg`.

The boxes are compared once and can then be ranked by many different scores: by 20 random orders for the AP with constant
scores, or by the scorers of boxtune/answers/confidence.py.
"""

from functools import cached_property

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_area, box_xywh_to_xyxy, box_xyxy_to_xywh
from boxtune.data.records import Record, stated_areas
from boxtune.metrics.pairs import FlatSplit, assign_in_turn, count_up, flatten_column, flatten_split, intersection_area
from boxtune.metrics.precision_recall import IOU_THRESHOLDS, RankedMatches

# COCO counts at most this many predictions of a class in one image, those with the highest scores.
MAX_PREDICTIONS = 100
# Object areas in square pixels: at least the first number, at most the second.
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


class CocoBoxes:
    """The boxes of a split and the IoU of all pairs that COCO could match.

    `classes` come from `all_classes`, `split` from `flatten_split` with the same classes. N counts the predictions of these
    classes, M the ground truth boxes, P the pairs.

    image, category, area: (N,) of the predictions. boxes_xywh: (N, 4). scores: (N,).
    gt_image, gt_category: (M,). gt_area: (M,) the stated area, else that of the box; it decides the size but no IoU.
    gt_ignored: (M,) bool, what COCO calls `iscrowd`.
    pair_prediction, pair_gt, pair_iou: (P,) all pairs of the same image and class with an IoU of 0.5 or more.
    """

    def __init__(
        self,
        records: list[Record],
        predictions: list[Prediction],
        classes: list[str],
        split: FlatSplit | None = None,
    ):
        split = split or flatten_split(records, predictions, classes)
        predicted, gt = split.predicted, split.gt
        self.shape = (len(records), len(classes))

        self._is_known = predicted.label < len(classes)  # (all predictions,)
        known_boxes_xyxy = predicted.boxes_xyxy[self._is_known]
        self.image, self.category = predicted.image[self._is_known], predicted.label[self._is_known]
        self.boxes_xywh, self.area = box_xyxy_to_xywh(known_boxes_xyxy), box_area(known_boxes_xyxy)
        self.scores = self.scores_of(predictions)
        self.group = self.image * len(classes) + self.category
        # Predictions in an image with more of their class than COCO counts.
        self.crowded = np.flatnonzero(np.bincount(self.group, minlength=1)[self.group] > MAX_PREDICTIONS)

        self.gt_image, self.gt_category, gt_box_area = gt.image, gt.label, box_area(gt.boxes_xyxy)
        stated = flatten_column((stated_areas(record["objects"]) for record in records), np.float64)  # NaN for None
        self.gt_area = np.where(np.isnan(stated), gt_box_area, stated)
        self.gt_ignored = split.gt_ignored

        pairs = split.pairs.select(split.is_same_class)  # of known classes, because ground truth has no other
        prediction, pair_gt = (np.cumsum(self._is_known) - 1)[pairs.prediction], pairs.gt
        # COCO stores width and height. Converting there and back reproduces its rounding to the last bit.
        coco_boxes, coco_gt_boxes = (
            box_xywh_to_xyxy(box_xyxy_to_xywh(boxes)) for boxes in (known_boxes_xyxy, gt.boxes_xyxy)
        )
        shared_area, overlaps = intersection_area(coco_boxes[prediction], coco_gt_boxes[pair_gt])
        area = self.area[prediction]
        union = area + gt_box_area[pair_gt] - shared_area
        # With an ignored region COCO divides by the area of the prediction alone.
        iou = shared_area / np.where(self.gt_ignored[pair_gt], area, union)
        is_close = overlaps & (iou >= IOU_THRESHOLDS[0])
        self.pair_prediction, self.pair_gt, self.pair_iou = prediction[is_close], pair_gt[is_close], iou[is_close]

    def scores_of(self, predictions: list[Prediction]) -> np.ndarray:
        """(N,) scores of the same predictions, which may have been given other scores since."""
        scores = flatten_column((prediction["objects"]["score"] for prediction in predictions), np.float64)
        return scores[self._is_known]

    @cached_property
    def matcher(self) -> "AreaMatcher":
        """Matches objects of all sizes."""
        return AreaMatcher(self, "all")

    @cached_property
    def ranked(self) -> RankedMatches:
        """The predictions ranked by their own scores and matched at all thresholds."""
        return self.match(self.scores)

    def match(self, scores: np.ndarray, area: str = "all") -> RankedMatches:
        """Match at all thresholds, with the predictions ranked by (N,) `scores`; `area` is a key of AREAS.

        Predictions with equal scores keep their order.
        """
        matcher = self.matcher if area == "all" else AreaMatcher(self, area)
        return matcher.match(np.argsort(-scores, kind="stable"))


class AreaMatcher:
    """Everything about matching objects of one size that does not depend on the scores.

    A candidate is a pair that may be matched at one threshold. Candidates are ordered by threshold, prediction and preference:
    a prediction prefers the highest IoU, and any ground truth box that counts to any that is ignored. Ground truth outside
    the area is ignored, and so are unmatched predictions outside the area.
    """

    def __init__(self, boxes: CocoBoxes, area: str):
        smallest, largest = AREAS[area]
        self.boxes = boxes
        # numpy sorts 16-bit integers ten times as fast.
        self._category = boxes.category.astype(np.int16 if boxes.shape[1] < 1 << 15 else np.int64)
        is_outside = (boxes.area < smallest) | (boxes.area > largest)  # (N,)
        gt_ignored = boxes.gt_ignored | (boxes.gt_area < smallest) | (boxes.gt_area > largest)  # (M,)

        gt_by_class = np.argsort(boxes.gt_category, kind="stable")
        gt_by_class = gt_by_class[~gt_ignored[gt_by_class]]
        self._gt_image, self._gt_category = boxes.gt_image[gt_by_class], boxes.gt_category[gt_by_class]

        # Of ground truth boxes with equal IoU, COCO takes the last.
        preference = np.lexsort((-boxes.pair_gt, -boxes.pair_iou, gt_ignored[boxes.pair_gt], boxes.pair_prediction))
        self.threshold, pair = np.nonzero(boxes.pair_iou[preference] >= IOU_THRESHOLDS[:, None])
        gt = boxes.pair_gt[preference][pair]
        self.prediction = boxes.pair_prediction[preference][pair]
        self.matches_ignored = gt_ignored[gt]
        self.matches_crowd = boxes.gt_ignored[gt]  # a crowd may be matched by any number of predictions

        # Matching at one threshold does not affect another one: number predictions and boxes per threshold.
        self.row = self.threshold * len(boxes.image) + self.prediction
        self.column = self.threshold * len(gt_ignored) + gt
        # A candidate without a rival is matched whatever the scores are.
        has_rival = (np.bincount(self.row)[self.row] > 1) | (np.bincount(self.column)[self.column] > 1)
        self._contested = np.flatnonzero(has_rival)
        shape = len(IOU_THRESHOLDS), len(boxes.image)
        nothing, inside = np.zeros(shape, dtype=bool), np.tile(~is_outside, (shape[0], 1))
        self._is_hit, self._is_counted = self._with_matches(np.flatnonzero(~has_rival), nothing, inside)

    def match(self, by_score: np.ndarray) -> RankedMatches:
        """Match the predictions in the order of `by_score`, (N,) their positions by descending score."""
        boxes = self.boxes
        rank = np.empty_like(by_score)
        rank[by_score] = np.arange(len(by_score))
        is_kept = np.ones(len(rank), dtype=bool)
        is_kept[boxes.crowded] = _first_of_groups(boxes.group[boxes.crowded], rank[boxes.crowded], MAX_PREDICTIONS)

        contested = self._contested[is_kept[self.prediction[self._contested]]]
        won = assign_in_turn(
            rows=self.row[contested],
            columns=self.column[contested],
            ranks=rank[self.prediction[contested]],
            is_shared=self.matches_crowd[contested],
        )
        is_hit, is_counted = self._with_matches(contested[won], self._is_hit, self._is_counted)
        order = by_score[np.argsort(self._category[by_score], kind="stable")]
        order = order[is_kept[order]]  # the kept predictions by class and descending score
        return RankedMatches(
            class_count=boxes.shape[1],
            image=boxes.image[order],
            category=boxes.category[order],
            is_hit=is_hit[:, order],
            is_counted=is_counted[:, order],
            gt_image=self._gt_image,
            gt_category=self._gt_category,
        )

    def _with_matches(
        self, matched: np.ndarray, is_hit: np.ndarray, is_counted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(10, N) `is_hit` and `is_counted` after the candidates at positions `matched` are matched."""
        is_hit, is_counted = is_hit.copy(), is_counted.copy()
        is_hit.ravel()[self.row[matched]] = is_counted.ravel()[self.row[matched]] = ~self.matches_ignored[matched]
        return is_hit, is_counted


def _first_of_groups(group: np.ndarray, rank: np.ndarray, count: int) -> np.ndarray:
    """(N,) bool: whether the rank is among the `count` lowest of its group; group, rank: (N,)."""
    by_group = np.lexsort((rank, group))
    group_starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    group_sizes = np.diff(np.append(group_starts, len(group)))
    is_first = np.empty(len(group), dtype=bool)
    is_first[by_group] = count_up(group_sizes) < count
    return is_first
