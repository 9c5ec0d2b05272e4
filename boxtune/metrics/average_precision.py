"""COCO average precision of records and predictions in memory, in numpy, equal to pycocotools (tests/test_average_precision.py).

Truth that is ignored counts as `iscrowd`. As in COCO, at most the 100 best-scored boxes of a class and image count, boxes
of equal score are taken in the order in which they stand, and a label that no truth box bears costs nothing.

The rules are those of pycocotools' cocoeval.py. What is here besides is that boxes are compared once and then ranked often:
by 20 orders where scores are made equal, and by every draw of a bootstrap.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from boxtune.data.boxes import box_area, box_xywh_to_xyxy, box_xyxy_to_xywh
from boxtune.metrics.matching import is_click
from boxtune.metrics.pairs import assign, column_of, flatten, overlaps

MAX_BOXES = 100
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
ORDERS = 20


@dataclass(frozen=True)
class CocoResult:
    """What COCO calls precision and recall: (10 IoU thresholds, 101 recalls, classes) and (10, classes).

    −1 stands where a class has no truth.
    """

    precision: np.ndarray
    recall: np.ndarray

    def ap(self, threshold: int | slice = slice(None), category: int | slice = slice(None)) -> float | None:
        """Mean precision or None; `threshold` counts in steps of 0.05 from 0.5, `category` in the order of the classes."""
        return mean_defined(self.precision[threshold][..., category])

    def ar(self) -> float | None:
        return mean_defined(self.recall)


def mean_defined(values: np.ndarray) -> float | None:
    """Mean of the values that are not −1; None where there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def all_classes(records: list[dict], classes: list[str]) -> list[str]:
    """The data set's classes and, after them, whatever else its truth is called."""
    truth = sorted({label.strip() for record in records for label in record["objects"]["category"]})
    return list(dict.fromkeys([*(name.strip() for name in classes), *truth]))


class CocoBoxes:
    """The boxes of a split, compared once: `match` ranks them by any scores. `classes` come from `all_classes`."""

    def __init__(self, records: list[dict], predictions: list[dict], classes: list[str]):
        numbers = {name: i for i, name in enumerate(classes)}
        truth, answers = flatten(records, numbers), flatten(predictions, numbers)
        self.known = answers.label >= 0  # among all objects of the predictions
        self.scores = self.scores_of(predictions)
        self.image, self.category = answers.image[self.known], answers.label[self.known]
        self.boxes_xywh = box_xyxy_to_xywh(answers.boxes_xyxy[self.known])
        self.area, self.truth_area = box_area(answers.boxes_xyxy[self.known]), box_area(truth.boxes_xyxy)
        self.crowd = column_of(records, "ignore", bool)
        self.truth_image, self.truth_category, self.shape = truth.image, truth.label, (len(records), len(classes))
        self.group = self.image * len(classes) + self.category
        self.crowded = np.bincount(self.group, minlength=1).max() > MAX_BOXES
        rows, columns, shared = overlaps(
            self.group,
            box_xywh_to_xyxy(self.boxes_xywh),  # by way of width and height, as COCO's files hold them, to the last bit
            truth.image * len(classes) + truth.label,
            box_xywh_to_xyxy(box_xyxy_to_xywh(truth.boxes_xyxy)),
        )
        union = self.area[rows] + self.truth_area[columns] - shared
        iou = shared / np.where(self.crowd[columns], self.area[rows], union)
        near = iou >= THRESHOLDS[0]
        self.rows, self.columns, self.iou = rows[near], columns[near], iou[near]

    def scores_of(self, predictions: list[dict]) -> np.ndarray:
        """(N,) scores of the boxes that bear a known label, from the same predictions, whatever they rank by."""
        return column_of(predictions, "score", np.float64)[self.known]

    def match(self, scores: np.ndarray, area: str = "all") -> "Matches":
        return CocoRules(self, area).match(scores)


class CocoRules:
    """Which truth a box may have at each of the ten thresholds, in the order in which it wants it: the highest IoU first,
    ignored truth last. Truth outside the `area` is ignored too."""

    def __init__(self, boxes: CocoBoxes, area: str = "all"):
        low, high = AREAS[area]
        ignored = boxes.crowd | (boxes.truth_area < low) | (boxes.truth_area > high)
        # COCO takes the later one of equal truth.
        order = np.lexsort((-boxes.columns, -boxes.iou, ignored[boxes.columns], boxes.rows))
        self.step, pair = np.nonzero(boxes.iou[order] >= THRESHOLDS[:, None])
        self.box, truth = boxes.rows[order][pair], boxes.columns[order][pair]
        self.row, self.column = self.step * len(boxes.image) + self.box, self.step * len(ignored) + truth
        self.crowd, self.ignored = boxes.crowd[truth], ignored[truth]
        # Where neither has another to choose, no order changes anything.
        self.contested = (np.bincount(self.row)[self.row] > 1) | (np.bincount(self.column)[self.column] > 1)
        self.boxes, self.outside = boxes, (boxes.area < low) | (boxes.area > high)
        place = boxes.truth_image[~ignored] * boxes.shape[1] + boxes.truth_category[~ignored]
        self.truth = np.bincount(place, minlength=boxes.shape[0] * boxes.shape[1]).reshape(boxes.shape)

    def match(self, scores: np.ndarray) -> "Matches":
        """The boxes ranked by (N,) scores; of equal ones the first that stands is the first to choose."""
        boxes = self.boxes
        order = np.argsort(-scores, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        order = order[np.argsort(boxes.category[order], kind="stable")]
        allowed = np.ones(len(order), dtype=bool)
        if boxes.crowded:
            allowed = first_of_groups(boxes.group, rank, MAX_BOXES)
            order = order[allowed[order]]
        contested = np.flatnonzero(self.contested & allowed[self.box])
        won = assign(self.row[contested], self.column[contested], rank[self.box[contested]], self.crowd[contested])
        made = np.concatenate([np.flatnonzero(~self.contested & allowed[self.box]), contested[won]])
        place = np.empty_like(rank)
        place[order] = np.arange(len(order))
        at = self.step[made], place[self.box[made]]
        hit = np.zeros((len(THRESHOLDS), len(order)), dtype=bool)
        excused = np.tile(self.outside[order], (len(THRESHOLDS), 1))
        hit[at], excused[at] = ~self.ignored[made], self.ignored[made]
        return Matches(boxes.image[order], boxes.category[order], hit, ~excused, self.truth)


def first_of_groups(group: np.ndarray, rank: np.ndarray, count: int) -> np.ndarray:
    """(N,) bool: the `count` of lowest rank in each group."""
    order = np.lexsort((rank, group))
    start = np.flatnonzero(np.diff(group[order], prepend=-1))
    nth = np.arange(len(group)) - np.repeat(start, np.diff(np.append(start, len(group))))
    kept = np.empty(len(group), dtype=bool)
    kept[order] = nth < count
    return kept


@dataclass(frozen=True)
class Matches:
    """N boxes by class and, within it, by falling score, and how they fared at ten thresholds.

    image, category: (N,). hit, counted: (10, N) bool; one that is not counted is neither for nor against. truth: (images,
    classes) boxes to be found.
    """

    image: np.ndarray
    category: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    truth: np.ndarray

    def coco(self, weights: np.ndarray | None = None) -> CocoResult:
        """COCO's precision and recall, every image as often as `weights`, (images,) whole numbers, say; once where None.

        Between two hits precision only falls, so that hits alone need be looked at: at each recall the best precision there or
        later.
        """
        weights = np.ones(len(self.truth), dtype=np.int64) if weights is None else weights
        truth, weight, at = weights @ self.truth, weights[self.image], self._hits
        found, seen, excused = _running_sum(weight[at.box]), _running_sum(weight), _running_sum(weight[at.excused])
        begin, end, lengths = at.ends[:-1], at.ends[1:], np.diff(at.ends)
        hits = found[1:] - np.repeat(found[begin], lengths)
        before = np.tile(seen[at.start], len(THRESHOLDS)) - excused[at.excused_before_start]
        boxes = seen[1:][at.box] - excused[at.excused_before] - np.repeat(before, lengths)
        precision = np.zeros(len(hits) + 1)
        np.divide(hits, boxes + np.spacing(1), out=precision[:-1])
        # (10 × classes, 101) from here on
        needed = np.tile(_hits_needed(truth), (len(THRESHOLDS), 1))
        total = found[end] - found[begin]
        reached = needed <= total[:, None]
        position = np.searchsorted(found[1:], found[begin, None] + needed)
        position = np.where(reached, position, end[:, None])
        best = np.where(reached, np.maximum.reduceat(precision, position.ravel()).reshape(position.shape), 0.0)
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1].reshape(len(THRESHOLDS), -1, len(RECALLS))
        recall = total.reshape(len(THRESHOLDS), -1) / np.maximum(truth, 1)
        return CocoResult(
            np.where(truth > 0, best.transpose(0, 2, 1), -1.0),
            np.where(truth > 0, recall, -1.0),
        )

    @cached_property
    def _hits(self) -> "_Hits":
        return _Hits(self.hit, ~self.counted, np.searchsorted(self.category, np.arange(self.truth.shape[1])))


class _Hits:
    """Where the hits of all thresholds stand among the boxes, by threshold, class and falling score.

    hit, excused: (10, N) bool. start: (classes,) where each class's boxes begin.
    """

    def __init__(self, hit: np.ndarray, excused: np.ndarray, start: np.ndarray):
        boxes = hit.shape[1]
        place = np.flatnonzero(hit)
        starts = (np.arange(len(hit))[:, None] * boxes + start).ravel()  # of each threshold and class
        self.start, self.box, self.excused = start, place % max(boxes, 1), np.flatnonzero(excused) % max(boxes, 1)
        self.ends = np.append(np.searchsorted(place, starts), len(place))
        excused_before = _running_sum(excused.ravel())
        self.excused_before, self.excused_before_start = excused_before[place], excused_before[starts]


def _running_sum(values: np.ndarray) -> np.ndarray:
    """(N + 1,) sums of the first 0, 1, … N values."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _hits_needed(truth: np.ndarray) -> np.ndarray:
    """(classes, 101) the least number of hits, 1 at least, whose share of (classes,) truth is a recall of RECALLS or more."""
    hits = np.floor(RECALLS * truth[:, None]).astype(np.int64)
    hits += hits / np.maximum(truth[:, None], 1) < RECALLS  # the comparison that COCO makes, rounding and all
    return np.maximum(hits, 1)


def evaluate_coco(records: list[dict], predictions: list[dict], classes: list[str]) -> CocoResult:
    """COCO precision and recall of `predictions[i]` on `records[i]`; `classes` come from `all_classes`."""
    boxes = CocoBoxes(records, predictions, classes)
    return boxes.match(boxes.scores).coco()


def constant_score_ap(boxes: CocoBoxes, seed: int) -> dict[str, float | None]:
    """AP as if all scores were equal: {"mean", "spread"} over 20 seeded orders of the predictions.

    Equal scores leave the order open and AP depends on it, so each order is spelt out by scores that all differ. `spread`
    is the standard deviation. The result does not depend on the order in which the predictions come.
    """
    order = np.lexsort((*boxes.boxes_xywh.T[::-1], boxes.category, boxes.image))
    generator, rules = np.random.default_rng(seed), CocoRules(boxes)

    def ap(permutation: np.ndarray) -> float | None:
        scores = np.empty(len(order))
        scores[order] = permutation
        return rules.match(scores).coco().ap()

    with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter while it works
        values = list(pool.map(ap, [generator.permutation(len(order)) for _ in range(ORDERS)]))
    if None in values:
        return {"mean": None, "spread": None}
    return {"mean": float(np.mean(values)), "spread": float(np.std(values))}


def curves(records: list[dict], predictions: list[dict], classes: list[str]) -> dict[str, dict[str, list[float]]]:
    """{class: {"recall": 101 values from 0 to 1, "precision": interpolated, at IoU 0.5}} of the classes with truth.

    Points have no curve: an empty dict for click answers.
    """
    if is_click(predictions):
        return {}
    classes = all_classes(records, classes)
    precision = evaluate_coco(records, predictions, classes).precision[0]
    return {
        name: {"recall": RECALLS.tolist(), "precision": precision[:, i].tolist()}
        for i, name in enumerate(classes)
        if precision[0, i] > -1
    }
