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
        hits, gt_count = [_find_hits(self, k) for k in range(len(IOU_THRESHOLDS))], np.diff(self._gt_starts)
        precision = _interpolate([(found.category, found.tp, found.counted) for found in hits], gt_count)
        recall = np.stack([found.per_class for found in hits]) / np.maximum(gt_count, 1)
        return CocoResult(
            precision=np.where(gt_count > 0, precision, -1.0), recall=np.where(gt_count > 0, recall, -1.0)
        )

    def average_precisions(self, draws: np.ndarray) -> np.ndarray:
        """(D, 2) AP and AP50 where each image counts as often as it was drawn; NaN where undefined.

        draws: (D, images) whole numbers, at most `draws_at_once` draws. Their sums are computed in one pass, as parts of the same
        64-bit integers. A running sum may overflow, but not the differences that are taken from it.
        """
        bits = min(64 // len(draws), 63)
        mask = (1 << bits) - 1
        packed = (draws << (bits * np.arange(len(draws)))[:, None]).sum(axis=0)
        sums = _sums_at_runs(self._runs, packed[self.image])
        gt_sums = np.diff(_running_sum(packed[self.gt_image])[self._gt_starts])
        values = []
        for k in range(len(draws)):
            shift = bits * k
            points = [(category, (tp >> shift) & mask, (counted >> shift) & mask) for category, tp, counted in sums]
            gt_count = (gt_sums >> shift) & mask
            values.append(_mean_precisions(_interpolate(points, gt_count), gt_count))
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
    def _runs(self) -> list["_Runs"]:
        """One per IoU threshold."""
        return [_find_runs(self, _find_hits(self, k), k) for k in range(len(IOU_THRESHOLDS))]


# Points of the curves of one IoU threshold, one curve per class: (K,) class, true positives and counted predictions of the curve
# up to and including the point. The thresholds are treated one after another, because arrays of this size stay in the cache.
_Points = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Hits:
    """The H true positives at one IoU threshold, ordered by class and then by descending score.

    position: (H,) among the N predictions. first: (H,) position of the first prediction of the class. category, tp, counted:
    (H,) as in _Points. per_class: (classes,) how many there are.
    """

    position: np.ndarray
    first: np.ndarray
    category: np.ndarray
    tp: np.ndarray
    counted: np.ndarray
    per_class: np.ndarray


def _find_hits(matches: RankedMatches, threshold: int) -> _Hits:
    position = np.flatnonzero(matches.is_hit[threshold])
    category = matches.category[position]
    class_starts = np.searchsorted(matches.category, np.arange(matches.class_count + 1))
    hits_before = np.searchsorted(position, class_starts)
    first = class_starts[category]
    counted_total = _running_sum(matches.is_counted[threshold].astype(np.int64))  # summing bools is slow
    return _Hits(
        position=position,
        first=first,
        category=category,
        tp=np.arange(1, len(position) + 1) - hits_before[category],
        counted=counted_total[position + 1] - counted_total[first],
        per_class=np.diff(hits_before),
    )


@dataclass(frozen=True)
class _Runs:
    """The R runs of all curves of one IoU threshold. A run is a series of hits of one class without a false positive in between.

    Precision rises within a run and falls between runs, so the interpolated precision depends on the precision at the ends of
    runs alone. Weights of images can only join runs, so nothing here depends on them.

    category: (R,) numbers. hit, excused: (H,) and (E,) positions of the hits and of the predictions that are not counted.
    hits_before, hits_to: (R,) how many of the hits are before the run's class, and up to the end of the run. excused_before,
    excused_to, before, to: the same for those that are not counted, and for all N predictions.
    """

    category: np.ndarray
    hit: np.ndarray
    hits_before: np.ndarray
    hits_to: np.ndarray
    excused: np.ndarray
    excused_before: np.ndarray
    excused_to: np.ndarray
    before: np.ndarray
    to: np.ndarray


def _find_runs(matches: RankedMatches, hits: _Hits, threshold: int) -> _Runs:
    fp = hits.counted - hits.tp
    is_last = np.ones(len(fp), dtype=bool)
    is_last[:-1] = (np.diff(hits.category) != 0) | (np.diff(fp) != 0)
    last = np.flatnonzero(is_last)
    before, to, excused = hits.first[last], hits.position[last] + 1, np.flatnonzero(~matches.is_counted[threshold])
    return _Runs(
        category=hits.category[last],
        hit=hits.position,
        hits_before=last + 1 - hits.tp[last],
        hits_to=last + 1,
        excused=excused,
        excused_before=np.searchsorted(excused, before),
        excused_to=np.searchsorted(excused, to),
        before=before,
        to=to,
    )


def _sums_at_runs(runs_of_thresholds: list[_Runs], prediction_weight: np.ndarray) -> list[_Points]:
    """The ends of the runs, where each of the N predictions counts with its weight."""
    total, points = _running_sum(prediction_weight), []
    for runs in runs_of_thresholds:
        hit_total, excused_total = (_running_sum(prediction_weight[chosen]) for chosen in (runs.hit, runs.excused))
        tp = hit_total[runs.hits_to] - hit_total[runs.hits_before]
        excused = excused_total[runs.excused_to] - excused_total[runs.excused_before]
        points.append((runs.category, tp, total[runs.to] - total[runs.before] - excused))
    return points


def _interpolate(points_of_thresholds: list[_Points], gt_count: np.ndarray) -> np.ndarray:
    """(10, 101, classes) at each recall the best precision there or at a higher recall; 0 beyond the highest recall.

    gt_count: (classes,) ground truth boxes.
    """
    best = np.zeros((len(IOU_THRESHOLDS), len(RECALLS), len(gt_count)))
    first_number, places = _recall_places(gt_count)
    for best_at_threshold, (category, tp, counted) in zip(best, points_of_thresholds, strict=True):
        precision = tp / (counted + np.spacing(1))  # pycocotools adds the same tiny number
        # The best precision of the points whose highest recall this is; then also of those that reach a higher one.
        np.maximum.at(best_at_threshold.reshape(-1), places[first_number[category] + tp], precision)
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
