"""Likely label errors of a split: where checkpoints and ground truth disagree, although they agree in similar cases.

The score of a candidate follows one rule for every kind. For each checkpoint that disagrees with the label, it is the share of
similar cases in which that checkpoint and the ground truth agree. Its mean is taken over all checkpoints that were asked about
the image; one that does not disagree counts 0. So a checkpoint is believed as far as the rest of the split confirms it.

| kind | a checkpoint disagrees if | in a similar case it agrees if |
| --- | --- | --- |
| missing | its box overlaps no ground truth of its class | its box matches ground truth |
| spurious | it has no box on the ground truth, nor has any other checkpoint | it finds the ground truth |
| moved | its box on the ground truth has an IoU in MOVED_IOU | its box has a higher IoU |
| swapped | its box on the ground truth has another class | both name the same class |

Similar are the SIMILAR cases of the same class that are nearest in score (a predicted box) or in size (a ground truth box), and
the case itself. A swapped label has two classes; the lower of both shares counts. If several checkpoints move a box, they must
agree with one another more than with the ground truth, and the score is multiplied by the mean IoU of their boxes.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxtune.answers.predictions import INCOMPLETE, Prediction, rounded_box
from boxtune.data.boxes import box_area, box_iou, intersection, match_greedy
from boxtune.data.records import Record
from boxtune.metrics.matching import IGNORED_SHARE, same_label

KINDS = {
    "missing": "an object without a label",
    "spurious": "a label without an object",
    "moved": "a label in the wrong place",
    "swapped": "a label of the wrong class",
}
FOUND_IOU = 0.5
# With such an IoU, a box is about the same object, but in another place.
MOVED_IOU = (0.3, 0.75)
SIMILAR = 20


@dataclass(frozen=True)
class Candidate:
    """One likely label error.

    image: position of the record. kind: a key of KINDS. score: from 0 to 1. ground_truth: position of the label in the record's
    objects; None for "missing". box_xyxy, category: what the checkpoints suggest instead; None for "spurious". checkpoints: how
    many disagree with the label.
    """

    image: int
    kind: str
    score: float
    ground_truth: int | None
    box_xyxy: list[float] | None
    category: str | None
    checkpoints: int


def find_label_errors(records: Sequence[Record], runs: Sequence[Sequence[Prediction | None]]) -> list[Candidate]:
    """The candidates of all kinds, the most likely first; at most one of them is about each ground truth box.

    runs: the predictions of each checkpoint in the order of `records`; None where it was not asked about the image.
    """
    columns = [
        [
            None if prediction is None else _View(record, prediction)
            for record, prediction in zip(records, run, strict=True)
        ]
        for run in runs
    ]
    checkpoints = [_Checkpoint([view for view in column if view]) for column in columns]
    candidates: list[Candidate] = []
    for image, row in enumerate(zip(*columns, strict=True)):
        seen = [(view, checkpoint) for view, checkpoint in zip(row, checkpoints, strict=True) if view]
        if not seen:
            continue
        candidates += _missing(image, seen)
        for j in seen[0][0].counted:
            about_label = [*_spurious(image, j, seen), *_moved(image, j, seen), *_swapped(image, j, seen)]
            candidates += sorted(about_label, key=_rank)[:1]
    return sorted((candidate for candidate in candidates if candidate.score > 0), key=_rank)


def _rank(candidate: Candidate) -> tuple[float, int, int]:
    return -candidate.score, candidate.image, -1 if candidate.ground_truth is None else candidate.ground_truth


# ---- one checkpoint and one image ----------------------------------------------------------------------------------------


class _View:
    """The boxes of one checkpoint in one image, and which ground truth each of them is about.

    counted: positions of the ground truth that is not ignored. sizes: (M,) log of the ground truth's share of the image.
    pairs: {ground truth: (box, IoU, same class?)}, one-to-one: boxes of the same class with FOUND_IOU first, then of another
    class with FOUND_IOU, then of the same class with MOVED_IOU[0]; within each, the highest IoU first.
    judged: boxes that are paired or not inside ignored ground truth. free: judged boxes that overlap no ground truth of their
    class. untouched: counted ground truth that no box overlaps, whatever its class.
    """

    def __init__(self, record: Record, prediction: Prediction) -> None:
        gt, predicted = record["objects"], prediction["objects"]
        self.boxes_xyxy: list[list[float]] = predicted["bbox"]
        self.labels = [label.strip() for label in predicted["category"]]
        self.scores: list[float] = predicted["score"]
        self.gt_labels = [label.strip() for label in gt["category"]]
        self.is_complete = not INCOMPLETE & {*prediction["problems"]}
        is_ignored = np.array(gt["ignore"], dtype=bool)
        self.counted: list[int] = np.flatnonzero(~is_ignored).tolist()
        self.sizes = np.log(box_area(gt["bbox"]) / (record["width"] * record["height"]))

        iou, same = box_iou(self.boxes_xyxy, gt["bbox"]), same_label(self.labels, self.gt_labels)
        self.pairs = _pair(np.where(is_ignored, 0.0, iou), same)
        paired = {i for i, _, _ in self.pairs.values()}
        inside = intersection(self.boxes_xyxy, gt["bbox"]) >= IGNORED_SHARE * box_area(self.boxes_xyxy)[:, None]
        is_excused = (inside & same & is_ignored).any(axis=1)
        self.judged = [i for i in range(len(self.labels)) if i in paired or not is_excused[i]]
        overlaps = np.where(same, iou, 0.0).max(axis=1, initial=0.0)
        self.free = [i for i in self.judged if i not in paired and overlaps[i] < MOVED_IOU[0]]
        best = iou.max(axis=0, initial=0.0)
        self.untouched = {j for j in self.counted if j not in self.pairs and best[j] < MOVED_IOU[0]}


def _pair(iou: np.ndarray, same: np.ndarray) -> dict[int, tuple[int, float, bool]]:
    """The `pairs` of a view."""
    left, pairs = iou.copy(), {}
    for is_same, least in ((True, FOUND_IOU), (False, FOUND_IOU), (True, MOVED_IOU[0])):
        for i, j in match_greedy(np.where(same == is_same, left, 0.0), least):
            pairs[j] = i, float(iou[i, j]), is_same
            left[i, :] = left[:, j] = 0.0
    return pairs


# ---- how far a checkpoint is to be believed ------------------------------------------------------------------------------


class _Cases:
    """The result of each case, by class, and the value by which cases are similar, such as a score."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._columns: dict[str, np.ndarray] = {}

    def add(self, label: str, value: float, result: float) -> None:
        self._rows[label].append((value, result))

    def similar(self, label: str, value: float) -> np.ndarray:
        """The results of the case with this value and of the SIMILAR nearest ones; more where several are equally near."""
        if label not in self._columns:
            self._columns[label] = np.array(self._rows[label]).T
        values, results = self._columns[label]
        distances = np.abs(values - value)
        count = min(SIMILAR, len(values) - 1)
        near: np.ndarray = results[distances <= np.partition(distances, count)[count]]
        return near


class _Checkpoint:
    """How often a checkpoint and the ground truth agree, in all images that it was asked about.

    hits: for each predicted box by score, does it match. found: for each ground truth box by size, the IoU of the box of its
    class. named, named_gt: does a predicted box that is about a ground truth box have its class; of both, by score and by size.
    """

    def __init__(self, views: Sequence[_View]) -> None:
        self._hits, self._found, self._named, self._named_gt = _Cases(), _Cases(), _Cases(), _Cases()
        for view in views:
            about = {i for i, iou, is_same in view.pairs.values() if is_same and iou >= FOUND_IOU}
            for i in view.judged:
                self._hits.add(view.labels[i], view.scores[i], i in about)
            for j in view.counted:
                _, iou, is_same = view.pairs.get(j, (0, 0.0, False))
                self._found.add(view.gt_labels[j], view.sizes[j], iou if is_same else 0.0)
            for j, (i, iou, is_same) in view.pairs.items():
                if iou >= FOUND_IOU:
                    self._named.add(view.labels[i], view.scores[i], is_same)
                    self._named_gt.add(view.gt_labels[j], view.sizes[j], is_same)

    def trust_in_box(self, view: _View, i: int) -> float:
        return float(self._hits.similar(view.labels[i], view.scores[i]).mean())

    def trust_in_absence(self, view: _View, j: int) -> float:
        return float((self._found.similar(view.gt_labels[j], view.sizes[j]) >= FOUND_IOU).mean())

    def trust_in_place(self, view: _View, j: int) -> float:
        return float((self._found.similar(view.gt_labels[j], view.sizes[j]) > view.pairs[j][1]).mean())

    def trust_in_class(self, view: _View, i: int, j: int) -> float:
        predicted = self._named.similar(view.labels[i], view.scores[i]).mean()
        labeled = self._named_gt.similar(view.gt_labels[j], view.sizes[j]).mean()
        return float(min(predicted, labeled))


_Seen = list[tuple[_View, _Checkpoint]]  # the checkpoints that were asked about an image


# ---- the kinds -----------------------------------------------------------------------------------------------------------


def _missing(image: int, seen: _Seen) -> list[Candidate]:
    """Free boxes; those of the same class with FOUND_IOU are about one object."""
    boxes = [
        (checkpoint.trust_in_box(view, i), number, view.labels[i], view.boxes_xyxy[i])
        for number, (view, checkpoint) in enumerate(seen)
        for i in view.free
    ]
    boxes.sort(key=lambda box: -box[0])
    candidates = []
    while boxes:
        _, _, label, box_xyxy = boxes[0]
        iou = box_iou([box_xyxy], [box[3] for box in boxes])[0]
        is_same = [n == 0 or (box[2] == label and iou[n] >= FOUND_IOU) for n, box in enumerate(boxes)]
        trusts: dict[int, float] = {}  # the highest of each checkpoint
        for box in itertools.compress(boxes, is_same):
            trusts.setdefault(box[1], box[0])
        score = sum(trusts.values()) / len(seen)
        candidates.append(Candidate(image, "missing", score, None, box_xyxy, label, len(trusts)))
        boxes = [box for box, is_used in zip(boxes, is_same, strict=True) if not is_used]
    return candidates


def _spurious(image: int, j: int, seen: _Seen) -> list[Candidate]:
    if not all(j in view.untouched for view, _ in seen):
        return []
    trusts = [checkpoint.trust_in_absence(view, j) for view, checkpoint in seen if view.is_complete]
    return [Candidate(image, "spurious", sum(trusts) / len(seen), j, None, None, len(trusts))]


def _moved(image: int, j: int, seen: _Seen) -> list[Candidate]:
    boxes, ious, trusts = [], [], []
    for view, checkpoint in seen:
        i, iou, is_same = view.pairs.get(j, (0, 0.0, False))
        if is_same and MOVED_IOU[0] <= iou < MOVED_IOU[1]:
            boxes.append(view.boxes_xyxy[i])
            ious.append(iou)
            trusts.append(checkpoint.trust_in_place(view, j))
    if len(boxes) < min(2, len(seen)):
        return []
    agreement = 1.0
    if len(boxes) > 1:
        agreement = float(box_iou(boxes, boxes)[np.triu_indices(len(boxes), k=1)].mean())
        if agreement <= np.mean(ious):
            return []
    place = rounded_box(np.mean(boxes, axis=0).tolist())
    score = agreement * sum(trusts) / len(seen)
    return [Candidate(image, "moved", score, j, place, seen[0][0].gt_labels[j], len(boxes))]


def _swapped(image: int, j: int, seen: _Seen) -> list[Candidate]:
    """One candidate for each class that a checkpoint suggests."""
    suggested: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for view, checkpoint in seen:
        i, _, is_same = view.pairs.get(j, (0, 0.0, True))
        if not is_same:
            suggested[view.labels[i]].append((checkpoint.trust_in_class(view, i, j), view.boxes_xyxy[i]))
    return [
        Candidate(image, "swapped", sum(trust for trust, _ in boxes) / len(seen), j, max(boxes)[1], label, len(boxes))
        for label, boxes in suggested.items()
    ]
