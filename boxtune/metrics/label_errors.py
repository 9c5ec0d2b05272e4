"""Likely label errors of a split: where checkpoints and labels disagree, although they agree in similar cases.

The boxes of all checkpoints in an image are first fused: boxes of different checkpoints on one object become one. The score of
a candidate follows one rule for every kind: it is the share of similar cases in which the fused boxes and the labels agree. So
checkpoints are believed as far as the rest of the split confirms them.

| kind | disagreement | agreement in a similar case |
| --- | --- | --- |
| missing | a fused box overlaps no label of its class | a box matches a label of its class |
| spurious | no fused box overlaps a label | a label of this class is matched |
| moved | a label has an IoU in MOVED_IOU with its fused box | a label of this class has a higher IoU |
| swapped | the fused box on a label has another class | a box on a label has its class |

Similar are the SIMILAR cases of the same class that are nearest in score (a fused box) or in size (a label), and the case itself.
A swapped label has two classes; the lower of both shares counts. Equal scores are ordered by the score of the fused box.
"""

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
SIMILAR = 50


@dataclass(frozen=True)
class Candidate:
    """One likely label error.

    image: position of the record. kind: a key of KINDS. score: from 0 to 1. ground_truth: position of the label in the record's
    objects; None for "missing". box_xyxy, category: what the checkpoints suggest instead; None for "spurious". checkpoints: how
    many of them suggest it; of "spurious", all that were asked about the image. confidence: the score of the fused box.
    """

    image: int
    kind: str
    score: float
    ground_truth: int | None
    box_xyxy: list[float] | None
    category: str | None
    checkpoints: int
    confidence: float


def find_label_errors(records: Sequence[Record], runs: Sequence[Sequence[Prediction | None]]) -> list[Candidate]:
    """The candidates of all kinds, the most likely first; at most one of them is about each label.

    runs: the predictions of each checkpoint in the order of `records`; None where it was not asked about the image.
    """
    views = {}
    for image, (record, *row) in enumerate(zip(records, *runs, strict=True)):
        if predictions := [prediction for prediction in row if prediction is not None]:
            views[image] = _View(record, predictions)
    agreement = _Agreement([*views.values()])
    candidates = [
        candidate
        for image, view in views.items()
        for candidate in (*_missing(image, view, agreement), *_about_labels(image, view, agreement))
    ]
    return sorted((candidate for candidate in candidates if candidate.score > 0), key=_rank)


def _rank(candidate: Candidate) -> tuple[float, float, int, int]:
    position = -1 if candidate.ground_truth is None else candidate.ground_truth
    return -candidate.score, -candidate.confidence, candidate.image, position


# ---- the boxes of several checkpoints ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusedBox:
    """Boxes of different checkpoints on one object.

    box_xyxy: their mean. score: the sum of their scores, divided by the number of checkpoints that were asked. checkpoints: the
    positions of theirs. agreement: the mean IoU of the boxes with one another; 1 for a single one.
    """

    box_xyxy: list[float]
    label: str
    score: float
    checkpoints: frozenset[int]
    agreement: float


def fuse(predictions: Sequence[Prediction]) -> list[FusedBox]:
    """The boxes of several checkpoints in one image, fused.

    A box, the best score first, joins the first fused box of its class with FOUND_IOU that has none of its checkpoint. Of fused
    boxes of different classes with FOUND_IOU and no common checkpoint, only the one with the higher score is kept.
    """
    boxes = [
        (score, number, label.strip(), box_xyxy)
        for number, objects in enumerate(prediction["objects"] for prediction in predictions)
        for box_xyxy, label, score in zip(objects["bbox"], objects["category"], objects["score"], strict=True)
    ]
    boxes.sort(key=lambda box: -box[0])
    places = [box_xyxy for _, _, _, box_xyxy in boxes]
    iou = box_iou(places, places)
    groups: list[list[int]] = []  # positions in `boxes`
    for n, (_, number, label, _) in enumerate(boxes):
        for first in np.flatnonzero(iou[n, :n] >= FOUND_IOU).tolist():
            group = next((group for group in groups if group[0] == first), [])
            if group and boxes[first][2] == label and all(boxes[m][1] != number for m in group):
                group.append(n)
                break
        else:
            groups.append([n])
    fused = sorted((_fused(group, boxes, iou, len(predictions)) for group in groups), key=lambda box: -box.score)
    places = [box.box_xyxy for box in fused]
    iou = box_iou(places, places)
    kept: list[int] = []
    for n, box in enumerate(fused):
        on_same_object = (fused[m] for m in kept if iou[n, m] >= FOUND_IOU)
        if all(box.label == better.label or box.checkpoints & better.checkpoints for better in on_same_object):
            kept.append(n)
    return [fused[n] for n in kept]


def _fused(group: list[int], boxes: list[tuple[float, int, str, list[float]]], iou: np.ndarray, asked: int) -> FusedBox:
    members = [boxes[n] for n in group]
    pairs = iou[np.ix_(group, group)][np.triu_indices(len(group), k=1)]
    return FusedBox(
        box_xyxy=rounded_box(np.mean([box_xyxy for _, _, _, box_xyxy in members], axis=0).tolist()),
        label=members[0][2],
        score=sum(score for score, _, _, _ in members) / asked,
        checkpoints=frozenset(number for _, number, _, _ in members),
        agreement=float(pairs.mean()) if len(pairs) else 1.0,
    )


# ---- one image -----------------------------------------------------------------------------------------------------------


class _View:
    """The fused boxes of one image, and which label each of them is about.

    counted: positions of the labels that are not ignored. sizes: (M,) log of a label's share of the image. pairs: {label: (fused
    box, IoU, same class?)}, one-to-one: boxes of the same class with FOUND_IOU first, then of another class with FOUND_IOU, then
    of the same class with MOVED_IOU[0]; within each, the highest IoU first. judged: boxes that are paired or not inside ignored
    labels. free: judged boxes that overlap no label of their class. untouched: counted labels that no box overlaps, whatever its
    class. is_complete: no response is known to lack objects.
    """

    def __init__(self, record: Record, predictions: Sequence[Prediction]) -> None:
        self.asked = len(predictions)
        self.boxes = fuse(predictions)
        self.labels: list[str] = [label.strip() for label in record["objects"]["category"]]
        gt_boxes, is_ignored = record["objects"]["bbox"], np.array(record["objects"]["ignore"], dtype=bool)
        self.counted: list[int] = np.flatnonzero(~is_ignored).tolist()
        self.sizes = np.log(box_area(gt_boxes) / (record["width"] * record["height"]))
        self.is_complete = not any(INCOMPLETE & {*prediction["problems"]} for prediction in predictions)

        boxes = [box.box_xyxy for box in self.boxes]
        iou, same = box_iou(boxes, gt_boxes), same_label([box.label for box in self.boxes], self.labels)
        self.pairs = _pair(np.where(is_ignored, 0.0, iou), same)
        paired = {i for i, _, _ in self.pairs.values()}
        inside = intersection(boxes, gt_boxes) >= IGNORED_SHARE * box_area(boxes)[:, None]
        is_excused = (inside & same & is_ignored).any(axis=1)
        self.judged = [i for i in range(len(boxes)) if i in paired or not is_excused[i]]
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


# ---- how far the checkpoints are to be believed --------------------------------------------------------------------------


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


class _Agreement:
    """How often fused boxes and labels agree, over all images.

    hits: for each box by score, does it match a label. found: for each label by size, the IoU of its box. named, named_labels:
    does a box on a label have its class; for the box by score, and for the label by size.
    """

    def __init__(self, views: Sequence[_View]) -> None:
        self._hits, self._found, self._named, self._named_labels = _Cases(), _Cases(), _Cases(), _Cases()
        for view in views:
            matched = {i for i, iou, is_same in view.pairs.values() if is_same and iou >= FOUND_IOU}
            for i in view.judged:
                self._hits.add(view.boxes[i].label, view.boxes[i].score, i in matched)
            for j in view.counted:
                _, iou, is_same = view.pairs.get(j, (0, 0.0, False))
                self._found.add(view.labels[j], view.sizes[j], iou if is_same else 0.0)
            for j, (i, iou, is_same) in view.pairs.items():
                if iou >= FOUND_IOU:
                    self._named.add(view.boxes[i].label, view.boxes[i].score, is_same)
                    self._named_labels.add(view.labels[j], view.sizes[j], is_same)

    def on_boxes(self, view: _View, i: int) -> float:
        return float(self._hits.similar(view.boxes[i].label, view.boxes[i].score).mean())

    def on_labels(self, view: _View, j: int) -> float:
        return float((self._found.similar(view.labels[j], view.sizes[j]) >= FOUND_IOU).mean())

    def on_places(self, view: _View, j: int) -> float:
        return float((self._found.similar(view.labels[j], view.sizes[j]) > view.pairs[j][1]).mean())

    def on_classes(self, view: _View, i: int, j: int) -> float:
        of_box = self._named.similar(view.boxes[i].label, view.boxes[i].score).mean()
        of_label = self._named_labels.similar(view.labels[j], view.sizes[j]).mean()
        return float(min(of_box, of_label))


# ---- the kinds -----------------------------------------------------------------------------------------------------------


def _missing(image: int, view: _View, agreement: _Agreement) -> list[Candidate]:
    return [_suggestion(image, "missing", agreement.on_boxes(view, i), None, view.boxes[i]) for i in view.free]


def _about_labels(image: int, view: _View, agreement: _Agreement) -> list[Candidate]:
    """Spurious, moved and swapped labels."""
    candidates = []
    for j in view.counted:
        i, iou, is_same = view.pairs.get(j, (-1, 0.0, False))
        if i < 0:
            if j in view.untouched and view.is_complete:
                score = agreement.on_labels(view, j)
                candidates.append(Candidate(image, "spurious", score, j, None, None, view.asked, 0.0))
        elif not is_same:
            candidates.append(_suggestion(image, "swapped", agreement.on_classes(view, i, j), j, view.boxes[i]))
        elif iou < MOVED_IOU[1] and _is_consistent(view, i, iou):
            candidates.append(_suggestion(image, "moved", agreement.on_places(view, j), j, view.boxes[i]))
    return candidates


def _is_consistent(view: _View, i: int, iou: float) -> bool:
    """Whether several checkpoints, if several were asked, agree on a place more than they agree with the label."""
    box = view.boxes[i]
    return len(box.checkpoints) >= min(2, view.asked) and box.agreement > iou


def _suggestion(image: int, kind: str, score: float, j: int | None, box: FusedBox) -> Candidate:
    return Candidate(image, kind, score, j, box.box_xyxy, box.label, len(box.checkpoints), box.score)
