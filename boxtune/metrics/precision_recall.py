"""COCO's precision and recall of ranked predictions, for whole splits and for weighted images.

The rules are those of `COCOeval.accumulate` in pycocotools.
"""

from collections.abc import Sequence
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
        tp, counted = _sums_at_runs(self._runs, weights[self.image])
        interpolated, gt_count = self._interpolated(weights, tp, counted)
        curve_tp = tp[self._runs.curve_end].reshape(len(IOU_THRESHOLDS), -1)
        recall = curve_tp / np.maximum(gt_count, 1)
        return CocoResult(
            precision=np.where(gt_count > 0, interpolated.transpose(0, 2, 1), -1.0),
            recall=np.where(gt_count > 0, recall, -1.0),
        )

    def average_precisions(self, draws: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        """(AP, AP50) of `accumulate` for each of a few draws of weights, NaN where undefined.

        The sums of up to `draws_at_once` draws are computed in one pass, as parts of the same 64-bit integers.
        """
        bits = 63 // len(draws)
        packed = sum((weights.astype(np.int64) << (bits * k) for k, weights in enumerate(draws)), start=0)
        tp, counted = _sums_at_runs(self._runs, np.asarray(packed)[self.image])
        values = []
        for k, weights in enumerate(draws):
            tp_of_draw, counted_of_draw = ((sums >> (bits * k)) & ((1 << bits) - 1) for sums in (tp, counted))
            interpolated, gt_count = self._interpolated(weights, tp_of_draw, counted_of_draw)
            values.append(_mean_precisions(interpolated, gt_count))
        return values

    def draws_at_once(self, draws: Sequence[np.ndarray]) -> int:
        """How many of the draws `average_precisions` can take: the sums of each must fit its part of an integer."""
        per_image = np.bincount(self.image, minlength=len(self.gt_count))
        largest = max((int(weights @ per_image) for weights in draws), default=0)
        return 3 if largest < 1 << 21 else 1

    def _interpolated(self, weights: np.ndarray, tp: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((10, classes, 101) precision, (classes,) ground truth boxes) for the sums of `_sums_at_runs` with these weights."""
        image, category, count = self._gt_cells
        gt_count = np.bincount(category, weights[image] * count, self.gt_count.shape[1]).astype(np.int64)
        return _interpolate(self._runs, _precision_at_runs(self._runs, tp, counted), tp, gt_count), gt_count

    @cached_property
    def _gt_cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(image, class, ground truth boxes) where there are any: an image has few of many classes."""
        image, category = np.nonzero(self.gt_count)
        return image, category, self.gt_count[image, category]

    @cached_property
    def _runs(self) -> "_Runs":
        return _find_runs(self)


@dataclass(frozen=True)
class _Runs:
    """The R runs of all curves. A run is a series of hits of one curve without a false positive between them.

    A curve belongs to one IoU threshold and one class; curves are ordered by threshold, then class. Precision rises within a run
    and falls between runs, so the interpolated precision depends on the precision at the ends of runs alone. Weights of
    images can only join runs, so nothing here depends on them. After its runs each curve has one more entry, its end.

    hit: (H,) position of each hit among the N predictions, ordered by curve and then by descending score.
    hits_before, hits_to: (R,) hits before the run's curve and up to the end of the run, over all curves.
    counted_before, counted_to: (R,) predictions before the run's class and up to the end of the run.
    excused: (E,) positions of predictions that are not counted, in the same order over all thresholds.
    excused_before, excused_to: (R,) how many of these E are before the run's curve and up to the end of the run.
    curve, category: (R,) numbers. curve_end: (curves,) position of the end of each curve.
    """

    hit: np.ndarray
    hits_before: np.ndarray
    hits_to: np.ndarray
    counted_before: np.ndarray
    counted_to: np.ndarray
    excused: np.ndarray
    excused_before: np.ndarray
    excused_to: np.ndarray
    curve: np.ndarray
    category: np.ndarray
    curve_end: np.ndarray


def _find_runs(matches: RankedMatches) -> _Runs:
    threshold_count, prediction_count = matches.is_hit.shape
    class_count = matches.gt_count.shape[1]
    curve_count = threshold_count * class_count
    # Positions in the flattened (thresholds, predictions) arrays.
    hit = np.flatnonzero(matches.is_hit)
    class_starts = np.searchsorted(matches.category, np.arange(class_count))
    curve_starts = (np.arange(threshold_count)[:, None] * prediction_count + class_starts).ravel()
    first_hit = np.searchsorted(hit, curve_starts)
    hit_ends = np.append(first_hit[1:], len(hit)) if curve_count else first_hit
    curve_of_hit = np.repeat(np.arange(curve_count), hit_ends - first_hit)

    excused_total = _running_sum(~matches.is_counted.ravel())
    false_before = hit - np.arange(len(hit)) - excused_total[hit]
    is_last = np.ones(len(hit), dtype=bool)
    is_last[:-1] = (np.diff(curve_of_hit) > 0) | (np.diff(false_before) > 0)
    last_hit = np.flatnonzero(is_last)
    curve = np.sort(np.concatenate([curve_of_hit[last_hit], np.arange(curve_count)]))
    curve_end = np.searchsorted(curve, np.arange(curve_count), side="right") - 1
    is_run = np.ones(len(curve), dtype=bool)
    is_run[curve_end] = False

    def per_run(at_runs: np.ndarray, at_ends: np.ndarray | int) -> np.ndarray:
        values = np.empty(len(curve), dtype=np.int64)
        values[is_run], values[curve_end] = at_runs, at_ends
        return values

    category = curve % max(class_count, 1)
    return _Runs(
        hit=hit % max(prediction_count, 1),
        hits_before=first_hit[curve],
        hits_to=per_run(last_hit + 1, hit_ends),
        counted_before=class_starts[category],
        counted_to=per_run(hit[last_hit] % max(prediction_count, 1) + 1, 0),
        excused=np.flatnonzero(~matches.is_counted) % max(prediction_count, 1),
        excused_before=excused_total[curve_starts][curve],
        excused_to=per_run(excused_total[hit[last_hit]], 0),
        curve=curve,
        category=category,
        curve_end=curve_end,
    )


def _sums_at_runs(runs: _Runs, prediction_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R,) the true positives and (R,) the counted predictions of the curve up to and including each run; 0 at ends, counted."""
    hit_total = _running_sum(prediction_weight[runs.hit])  # (H + 1,) over all curves
    tp = hit_total[runs.hits_to] - hit_total[runs.hits_before]
    total = _running_sum(prediction_weight)  # (N + 1,)
    counted = total[runs.counted_to] - total[runs.counted_before]
    if len(runs.excused):
        excused_total = _running_sum(prediction_weight[runs.excused])  # (E + 1,)
        counted -= excused_total[runs.excused_to] - excused_total[runs.excused_before]
    counted[runs.curve_end] = 0
    return tp, counted


def _precision_at_runs(runs: _Runs, tp: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(R,) precision of each curve up to and including each run; 0 at the ends of curves."""
    precision: np.ndarray = tp / (counted + np.spacing(1))  # pycocotools adds the same tiny number
    precision[runs.curve_end] = 0.0
    return precision


def _interpolate(runs: _Runs, precision: np.ndarray, tp: np.ndarray, gt_count: np.ndarray) -> np.ndarray:
    """(10, classes, 101) at each recall the best precision there or at a higher recall; 0 beyond the highest recall."""
    curve_count, recall_count = len(runs.curve_end), len(RECALLS)
    # (R,) how many of the recalls each run reaches, counted over all curves; the end of a curve takes what is left.
    reached = _recalls_reached(gt_count, runs.category, tp) + recall_count * runs.curve
    reached[runs.curve_end] = recall_count * np.arange(1, curve_count + 1)
    # Every recall begins at the run that reaches it, or at the end of its curve.
    first_run = np.repeat(np.arange(len(tp)), np.diff(reached, prepend=0))  # (curves × 101,)
    # The best precision from each recall's run to the next recall's run. The last range of a curve may run into the next
    # curve's first runs; those have no true positives and therefore precision 0.
    best = np.maximum.reduceat(precision, first_run).reshape(curve_count, recall_count)
    np.maximum.accumulate(best[:, ::-1], axis=1, out=best[:, ::-1])
    interpolated: np.ndarray = best.reshape(len(IOU_THRESHOLDS), -1, recall_count)
    return interpolated


def _recalls_reached(gt_count: np.ndarray, category: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """(R,) how many of RECALLS a class reaches with this many true positives; gt_count: (classes,), category, tp: (R,)."""
    sizes = np.maximum(gt_count, 1) + 1  # from 0 to all of the class's ground truth boxes
    starts = np.cumsum(sizes) - sizes
    reached = np.cumsum(np.bincount((starts[:, None] + _hits_needed(gt_count)).ravel(), minlength=sizes.sum()))
    numbers: np.ndarray = (
        reached[starts[category] + tp] - len(RECALLS) * category
    )  # without those of the classes before
    return numbers


def _mean_precisions(interpolated: np.ndarray, gt_count: np.ndarray) -> tuple[float, float]:
    """(AP, AP50) of (10, classes, 101) precisions, NaN where undefined."""
    defined = interpolated if gt_count.all() else interpolated[:, gt_count > 0]
    values = defined.transpose(0, 2, 1).ravel()  # the order of CocoResult, so that the sums are rounded alike
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
