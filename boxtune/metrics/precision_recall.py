"""COCO's precision and recall of ranked predictions, for whole splits and for weighted images.

The rules are those of `COCOeval.accumulate` in pycocotools.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class CocoResult:
    """precision: (10 IoU thresholds, 101 recalls, classes), interpolated. recall: (10, classes), the highest recall reached.

    −1 for classes without ground truth.
    """

    precision: np.ndarray
    recall: np.ndarray

    def ap(self, threshold: int | slice = slice(None), category: int | slice = slice(None)) -> float | None:
        """Average precision, or None if undefined. `threshold` 0 means IoU 0.5, 1 means 0.55, …; `category` is a class number."""
        return mean_defined(self.precision[threshold][..., category])

    def ar(self) -> float | None:
        """Average recall, or None if undefined."""
        return mean_defined(self.recall)


def mean_defined(values: np.ndarray) -> float | None:
    """Mean of the values that are not −1, or None if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


@dataclass(frozen=True)
class RankedMatches:
    """N predictions, ordered by class and then by descending score, and their results at ten IoU thresholds.

    image, category: (N,) numbers. is_hit: (10, N) bool, true positives. is_counted: (10, N) bool; predictions that are not
    counted are neither true nor false positives. gt_count: (images, classes) ground truth boxes that are not ignored.
    """

    image: np.ndarray
    category: np.ndarray
    is_hit: np.ndarray
    is_counted: np.ndarray
    gt_count: np.ndarray

    def accumulate(self, weights: np.ndarray | None = None) -> CocoResult:
        """COCO's precision and recall.

        `weights`: (images,) whole numbers, how often each image counts; None counts every image once. A bootstrap calls this
        once per draw.

        Example: a class with 3 ground truth boxes whose ranked predictions are hit, false positive, hit. Precision is 1/1 at
        the first hit (recall 1/3) and 2/3 at the second (recall 2/3). The interpolated precision is 1 for the 34 recalls from
        0 to 0.33, 2/3 for the 33 recalls from 0.34 to 0.66, and 0 for the other 34, so AP is (34 + 33 × 2/3) / 101 = 0.554.
        """
        if weights is None:
            weights = np.ones(len(self.gt_count), dtype=np.int64)
        gt_count = weights @ self.gt_count  # (classes,)
        prediction_weight = weights[self.image]  # (N,)
        hits = self._hits

        # Between two hits precision only falls, so the interpolated precision depends on the precision at hits alone.
        hit_total = _running_sum(prediction_weight[hits.prediction])  # (H + 1,) over all curves
        precision = _precision_at_hits(hits, prediction_weight, hit_total)
        interpolated = _interpolate(hits, precision, hit_total, gt_count)  # (10, classes, 101)

        curve_hits = hit_total[hits.curve_ends[1:]] - hit_total[hits.curve_ends[:-1]]
        recall = curve_hits.reshape(len(IOU_THRESHOLDS), -1) / np.maximum(gt_count, 1)
        return CocoResult(
            precision=np.where(gt_count > 0, interpolated.transpose(0, 2, 1), -1.0),
            recall=np.where(gt_count > 0, recall, -1.0),
        )

    @cached_property
    def _hits(self) -> "_Hits":
        return _find_hits(self)


@dataclass(frozen=True)
class _Hits:
    """The H hits of all curves. A curve belongs to one IoU threshold and one class; curves are ordered by threshold, then class.

    None of this depends on the weights of images.

    prediction: (H,) position of each hit among the N predictions; hits are ordered by curve and then by descending score.
    curve_ends: (curves + 1,) curve c has the hits curve_ends[c] to curve_ends[c + 1].
    class_starts: (classes,) position of each class's first prediction.
    excused_prediction: (E,) positions of predictions that are not counted, in the same order over all thresholds.
    excused_before_hit: (H,) how many of these E precede each hit. excused_before_curve: (curves,) how many precede each curve.
    """

    prediction: np.ndarray
    curve_ends: np.ndarray
    class_starts: np.ndarray
    excused_prediction: np.ndarray
    excused_before_hit: np.ndarray
    excused_before_curve: np.ndarray


def _find_hits(matches: RankedMatches) -> _Hits:
    is_excused = ~matches.is_counted
    threshold_count, prediction_count = matches.is_hit.shape
    class_count = matches.gt_count.shape[1]
    # Positions in the flattened (thresholds, predictions) arrays.
    hit = np.flatnonzero(matches.is_hit)
    class_starts = np.searchsorted(matches.category, np.arange(class_count))
    curve_starts = (np.arange(threshold_count)[:, None] * prediction_count + class_starts).ravel()
    excused_before = _running_sum(is_excused.ravel())
    return _Hits(
        prediction=hit % max(prediction_count, 1),
        curve_ends=np.append(np.searchsorted(hit, curve_starts), len(hit)),
        class_starts=class_starts,
        excused_prediction=np.flatnonzero(is_excused) % max(prediction_count, 1),
        excused_before_hit=excused_before[hit],
        excused_before_curve=excused_before[curve_starts],
    )


def _precision_at_hits(hits: _Hits, prediction_weight: np.ndarray, hit_total: np.ndarray) -> np.ndarray:
    """(H + 1,) precision of each curve up to and including each hit, and a 0 at the end."""
    hits_per_curve = np.diff(hits.curve_ends)
    prediction_total = _running_sum(prediction_weight)  # (N + 1,)
    excused_total = _running_sum(prediction_weight[hits.excused_prediction])  # (E + 1,)

    counted_before_curve = (
        np.tile(prediction_total[hits.class_starts], len(IOU_THRESHOLDS)) - excused_total[hits.excused_before_curve]
    )
    counted_at_hit = (
        prediction_total[1:][hits.prediction]
        - excused_total[hits.excused_before_hit]
        - np.repeat(counted_before_curve, hits_per_curve)
    )
    hits_at_hit = hit_total[1:] - np.repeat(hit_total[hits.curve_ends[:-1]], hits_per_curve)
    precision = np.zeros(len(hits_at_hit) + 1)
    np.divide(hits_at_hit, counted_at_hit + np.spacing(1), out=precision[:-1])  # pycocotools adds the same tiny number
    return precision


def _interpolate(hits: _Hits, precision: np.ndarray, hit_total: np.ndarray, gt_count: np.ndarray) -> np.ndarray:
    """(10, classes, 101) at each recall the best precision there or at a higher recall; 0 beyond the highest recall."""
    start, end = hits.curve_ends[:-1, None], hits.curve_ends[1:, None]  # (curves, 1)
    needed = np.tile(_hits_needed(gt_count), (len(IOU_THRESHOLDS), 1))  # (curves, 101)
    is_reached = needed <= hit_total[end] - hit_total[start]
    # (curves, 101) the hit at which each recall is reached
    first_hit = np.searchsorted(hit_total[1:], hit_total[start] + needed)
    first_hit = np.where(is_reached, first_hit, end)
    # The best precision from each recall's hit to the next recall's hit. The last range of a curve may run into the next
    # curve's first hits; those have weight 0 and therefore precision 0.
    best = np.maximum.reduceat(precision, first_hit.ravel()).reshape(first_hit.shape)
    best = np.where(is_reached, best, 0.0)
    best_from_here = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
    interpolated: np.ndarray = best_from_here.reshape(len(IOU_THRESHOLDS), -1, len(RECALLS))
    return interpolated


def _hits_needed(gt_count: np.ndarray) -> np.ndarray:
    """(classes, 101) the fewest hits, at least 1, with which each recall of RECALLS is reached; gt_count: (classes,)."""
    hits = np.floor(RECALLS * gt_count[:, None]).astype(np.int64)
    # The same comparison of rounded numbers as in pycocotools.
    hits += hits / np.maximum(gt_count[:, None], 1) < RECALLS
    needed: np.ndarray = np.maximum(hits, 1)
    return needed


def _running_sum(values: np.ndarray) -> np.ndarray:
    """(N + 1,) sums of the first 0, 1, …, N values."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums
