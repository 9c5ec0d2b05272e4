"""COCO's precision and recall of ranked predictions, for whole splits and for weighted images.

The rules are those of `COCOeval.accumulate` in pycocotools.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from boxtune.metrics.pairs import count_up

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
    counted are neither true nor false positives. gt_image, gt_category: (G,) of the ground truth boxes that are not ignored,
    ordered by class.
    """

    class_count: int
    image: np.ndarray
    category: np.ndarray
    is_hit: np.ndarray
    is_counted: np.ndarray
    gt_image: np.ndarray
    gt_category: np.ndarray

    def accumulate(self) -> CocoResult:
        """COCO's precision and recall.

        Example: a class with 3 ground truth boxes whose ranked predictions are hit, false positive, hit. Precision is 1/1 at
        the first hit (recall 1/3) and 2/3 at the second (recall 2/3). The interpolated precision is 1 for the 34 recalls from
        0 to 0.33, 2/3 for the 33 recalls from 0.34 to 0.66, and 0 for the other 34, so AP is (34 + 33 × 2/3) / 101 = 0.554.
        """
        hits, gt_count = self._hits, np.diff(self._gt_starts)
        precision = _interpolate(hits.category, hits.threshold_start, hits.tp, hits.counted, gt_count)
        recall = hits.per_curve.reshape(len(IOU_THRESHOLDS), -1) / np.maximum(gt_count, 1)
        return CocoResult(
            precision=np.where(gt_count > 0, precision, -1.0), recall=np.where(gt_count > 0, recall, -1.0)
        )

    def average_precisions(self, draws: np.ndarray) -> np.ndarray:
        """(D, 2) AP and AP50 where each image counts as often as it was drawn; NaN where undefined.

        draws: (D, images) whole numbers, at most `draws_at_once` draws. Their sums are computed in one pass, as parts of the same
        64-bit integers. A running sum may overflow, but not the differences that are taken from it.
        """
        bits = min(64 // len(draws), 63)
        packed = (draws << (bits * np.arange(len(draws)))[:, None]).sum(axis=0)
        tp, counted = _sums_at_runs(self._runs, packed[self.image])
        gt_count = np.diff(_running_sum(packed[self.gt_image])[self._gt_starts])
        values = []
        for k in range(len(draws)):
            tp_k, counted_k, gt_count_k = ((sums >> (bits * k)) & ((1 << bits) - 1) for sums in (tp, counted, gt_count))
            precision = _interpolate(self._runs.category, self._runs.threshold_start, tp_k, counted_k, gt_count_k)
            values.append(_mean_precisions(precision, gt_count_k))
        return np.array(values)

    def draws_at_once(self, draws: np.ndarray) -> int:
        """How many of the draws `average_precisions` can take: the sums of each must fit its part of an integer."""
        most_boxes = max(np.bincount(labels, minlength=1).max() for labels in (self.category, self.gt_category))
        largest_sum = int(most_boxes) * int(draws.max(initial=1))
        return 64 // max(1, largest_sum.bit_length())

    @cached_property
    def _gt_starts(self) -> np.ndarray:
        """(classes + 1,) where the ground truth boxes of each class start, and where the last ones end."""
        starts: np.ndarray = np.searchsorted(self.gt_category, np.arange(self.class_count + 1))
        return starts

    @cached_property
    def _hits(self) -> "_Hits":
        return _find_hits(self)

    @cached_property
    def _runs(self) -> "_Runs":
        return _find_runs(self._hits, np.flatnonzero(~self.is_counted), self.is_counted.shape[1])


@dataclass(frozen=True)
class _Hits:
    """The H true positives of all curves, ordered by curve and then by descending score.

    A curve belongs to one IoU threshold and one class; curves are ordered by threshold, then class.

    position: (H,) among the N predictions. curve, category: (H,) numbers. threshold_start: (H,) where the hit's threshold starts
    in an array (10, 101, classes). tp, counted: (H,) true positives and counted predictions of the curve up to and including
    the hit.
    per_curve: (curves,) number of hits. curve_start: (curves,) where the curve's predictions start in an array (10, N).
    """

    position: np.ndarray
    curve: np.ndarray
    category: np.ndarray
    threshold_start: np.ndarray
    tp: np.ndarray
    counted: np.ndarray
    per_curve: np.ndarray
    curve_start: np.ndarray


def _find_hits(matches: RankedMatches) -> _Hits:
    threshold_count, prediction_count = matches.is_hit.shape
    thresholds, classes = np.arange(threshold_count)[:, None], np.arange(matches.class_count)
    curve_start = (prediction_count * thresholds + np.searchsorted(matches.category, classes)).ravel()
    hit = np.flatnonzero(matches.is_hit)
    per_curve = np.diff(np.searchsorted(hit, curve_start), append=len(hit))

    def per_hit(of_curve: np.ndarray) -> np.ndarray:
        """(H,) the number of each hit's curve; of_curve: (10, 1), (classes,) or (10, classes)."""
        return np.repeat(np.broadcast_to(of_curve, (threshold_count, matches.class_count)), per_curve)

    counted_total = _running_sum(matches.is_counted.ravel())
    return _Hits(
        position=hit - per_hit(prediction_count * thresholds),
        curve=per_hit(matches.class_count * thresholds + classes),
        category=per_hit(classes),
        threshold_start=per_hit(len(RECALLS) * matches.class_count * thresholds),
        tp=count_up(per_curve) + 1,
        counted=counted_total[hit + 1] - np.repeat(counted_total[curve_start], per_curve),
        per_curve=per_curve,
        curve_start=curve_start,
    )


@dataclass(frozen=True)
class _Runs:
    """The R runs of all curves. A run is a series of hits of one curve without a false positive between them.

    Precision rises within a run and falls between runs, so the interpolated precision depends on the precision at the ends of
    runs alone. Weights of images can only join runs, so nothing here depends on them.

    hit: (H,) as `position` of _Hits. hits_before, hits_to: (R,) hits before the run's curve and up to the end of the run, over
    all curves. counted_before, counted_to: (R,) predictions before the run's class and up to the end of the run.
    excused: (E,) positions of predictions that are not counted, ordered like the hits. excused_before, excused_to: (R,) how
    many of these E are before the run's curve and up to the end of the run. category, threshold_start: (R,) as in _Hits.
    """

    hit: np.ndarray
    hits_before: np.ndarray
    hits_to: np.ndarray
    counted_before: np.ndarray
    counted_to: np.ndarray
    excused: np.ndarray
    excused_before: np.ndarray
    excused_to: np.ndarray
    category: np.ndarray
    threshold_start: np.ndarray


def _find_runs(hits: _Hits, excused: np.ndarray, prediction_count: int) -> _Runs:
    """`excused`: (E,) where predictions are not counted in the flattened array (10, N)."""
    fp = hits.counted - hits.tp
    is_last = np.ones(len(fp), dtype=bool)
    is_last[:-1] = (np.diff(hits.curve) != 0) | (np.diff(fp) != 0)
    last = np.flatnonzero(is_last)
    curve, hits_to, counted_to = hits.curve[last], last + 1, hits.position[last] + 1
    counted_before = hits.curve_start[hits.category[last]]  # at the first threshold, where positions start at 0
    excused_before = np.searchsorted(excused, hits.curve_start)[curve]
    return _Runs(
        hit=hits.position,
        hits_before=hits_to - hits.tp[last],
        hits_to=hits_to,
        counted_before=counted_before,
        counted_to=counted_to,
        excused=excused % max(prediction_count, 1),
        excused_before=excused_before,
        excused_to=excused_before + counted_to - counted_before - hits.counted[last],
        category=hits.category[last],
        threshold_start=hits.threshold_start[last],
    )


def _sums_at_runs(runs: _Runs, prediction_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R,) the true positives and (R,) the counted predictions of the curve up to and including each run."""
    hit_total = _running_sum(prediction_weight[runs.hit])  # (H + 1,) over all curves
    tp = hit_total[runs.hits_to] - hit_total[runs.hits_before]
    total = _running_sum(prediction_weight)  # (N + 1,)
    counted = total[runs.counted_to] - total[runs.counted_before]
    if len(runs.excused):
        excused_total = _running_sum(prediction_weight[runs.excused])  # (E + 1,)
        counted -= excused_total[runs.excused_to] - excused_total[runs.excused_before]
    return tp, counted


def _interpolate(
    category: np.ndarray, threshold_start: np.ndarray, tp: np.ndarray, counted: np.ndarray, gt_count: np.ndarray
) -> np.ndarray:
    """(10, 101, classes) at each recall the best precision there or at a higher recall; 0 beyond the highest recall.

    category, threshold_start, tp, counted: (K,) of points of the curves, see _Hits. gt_count: (classes,).
    """
    precision = tp / (counted + np.spacing(1))  # pycocotools adds the same tiny number
    first_number, places = _recall_places(gt_count)
    best = np.zeros((len(IOU_THRESHOLDS), len(RECALLS), len(gt_count)))
    np.maximum.at(best.reshape(-1), places[first_number[category] + tp] + threshold_start, precision)
    for k in range(len(RECALLS) - 2, -1, -1):
        np.maximum(best[:, k], best[:, k + 1], out=best[:, k])
    return best


def _recall_places(gt_count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest recall that a class reaches with 0, 1, … true positives, as places in a flattened array (101, classes).

    Returns (classes,) where each class starts in the places, and the places, one per class and number of true positives.
    Without a true positive, when precision is 0, the place is that of the lowest recall.
    """
    numbers = np.maximum(gt_count, 1) + 1  # a class has from 0 to gt_count true positives
    recalls = np.maximum(np.arange(-1, len(RECALLS)), 0)  # (102,) 0 for no true positives, then every recall
    places = recalls * len(gt_count) + np.arange(len(gt_count))[:, None]  # (classes, 102)
    repeats = np.diff(_hits_needed(gt_count), axis=1, prepend=0, append=numbers[:, None])
    return np.cumsum(numbers) - numbers, np.repeat(places, repeats.ravel())


def _mean_precisions(precision: np.ndarray, gt_count: np.ndarray) -> tuple[float, float]:
    """(AP, AP50) of (10, 101, classes) precisions, NaN where undefined."""
    values = (precision if gt_count.all() else precision[..., gt_count > 0]).ravel()
    if not values.size:
        return np.nan, np.nan
    return float(values.mean()), float(values[: len(values) // len(IOU_THRESHOLDS)].mean())


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
