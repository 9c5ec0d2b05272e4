"""Which prediction answers which truth box of its image: class-aware, one-to-one, the best pair first."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from boxtune.boxes import box_area, box_iou, intersection, match_greedy

# An unmatched prediction is excused when this share of it lies inside an ignored box of its class.
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class ImageScore:
    """How the answer to one image fared. Numbers index the lists in `objects` of its prediction or of its record.

    pairs: (prediction, truth, IoU) of the true positives; for points the IoU is None.
    false: predictions that are false positives, `duplicates` among them. excused: predictions that are not counted.
    missed: truth that nothing matched, the false negatives. ious: for each truth box not ignored, the IoU of a one-to-one
    matching without threshold, 0 where it has no partner; empty for points.
    """

    id: str
    pairs: list[tuple[int, int, float | None]]
    false: list[int]
    duplicates: list[int]
    excused: list[int]
    missed: list[int]
    ious: list[float]

    @property
    def tp(self) -> int:
        return len(self.pairs)

    @property
    def fp(self) -> int:
        return len(self.false)

    @property
    def fn(self) -> int:
        return len(self.missed)

    @property
    def errors(self) -> int:
        return self.fp + self.fn

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU over the image's truth boxes; None where it has none, and for points."""
        return float(np.mean(self.ious)) if self.ious else None


def image_scores(records: list[dict], predictions: list[dict], iou_threshold: float = 0.5) -> list[ImageScore]:
    """Match `predictions[i]` with `records[i]`: class-aware, one-to-one, the best pair first."""
    return [_score_image(*pair, iou_threshold) for pair in zip(records, predictions, strict=True)]


def scored_hits(images: list[ImageScore], predictions: list[dict]) -> tuple[list[float], list[bool]]:
    """(scores, whether each is a true positive) of all objects that count."""
    scores, hits = [], []
    for image, prediction in zip(images, predictions, strict=True):
        matched = {i for i, *_ in image.pairs}
        counted = sorted(matched | {*image.false})
        scores += [prediction["objects"]["score"][i] for i in counted]
        hits += [i in matched for i in counted]
    return scores, hits


def worst_first(scores: list[ImageScore]) -> list[int]:
    """Positions in `scores`: most errors first, then lower mean IoU, then the order of the split."""

    def badness(i: int) -> tuple:
        iou = scores[i].mean_iou
        return (-scores[i].errors, 1.0 if iou is None else iou, i)

    return sorted(range(len(scores)), key=badness)


def is_click(predictions: Iterable[dict]) -> bool:
    """Whether the answers are points. Boxes and points are never mixed in one run."""
    return any("point" in prediction["objects"] for prediction in predictions)


def _score_image(record: dict, prediction: dict, threshold: float) -> ImageScore:
    truth, answers = record["objects"], prediction["objects"]
    counted = [j for j, is_ignored in enumerate(truth["ignore"]) if not is_ignored]
    ignored = [j for j, is_ignored in enumerate(truth["ignore"]) if is_ignored]
    same_class = same_label(answers["category"], truth["category"])
    if "point" in answers:
        hits = excuses = point_in_box(answers["point"], truth["bbox"]) & same_class
        pairs = [(i, counted[j], None) for i, j in _match_most(hits[:, counted])]
        ious = []
    else:
        iou = box_iou(answers["bbox"], truth["bbox"]) * same_class
        hits = iou >= threshold
        inside = intersection(answers["bbox"], truth["bbox"])
        # More than nothing: the area of a box of no size is nothing, too.
        excuses = (inside > 0) & (inside >= IGNORED_SHARE * box_area(answers["bbox"])[:, None]) & same_class
        # The best pair comes first, so the matching at a threshold is the head of the one without: one serves both.
        partners = {counted[j]: (i, float(iou[i, counted[j]])) for i, j in match_greedy(iou[:, counted])}
        pairs = sorted((i, j, value) for j, (i, value) in partners.items() if value >= threshold)
        ious = [partners[j][1] if j in partners else 0.0 for j in counted]
    matched_answers, matched_truth = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    unmatched = [i for i in range(len(answers["category"])) if i not in matched_answers]
    false = [i for i in unmatched if not excuses[i, ignored].any()]
    return ImageScore(
        id=record["id"],
        pairs=pairs,
        false=false,
        duplicates=[i for i in false if hits[i, sorted(matched_truth)].any()],
        excused=[i for i in unmatched if excuses[i, ignored].any()],
        missed=[j for j in counted if j not in matched_truth],
        ious=ious,
    )


def same_label(labels_a: list[str], labels_b: list[str]) -> np.ndarray:
    """(N, M) bool: labels equal after strip."""
    a, b = ([label.strip() for label in labels] for labels in (labels_a, labels_b))
    return np.array([[x == y for y in b] for x in a], dtype=bool).reshape(len(a), len(b))


def point_in_box(points_xy: list[list[float]], boxes_xyxy: list[list[float]]) -> np.ndarray:
    """(N, M) bool: the point lies in the box or on its border."""
    points = np.asarray(points_xy, dtype=np.float64).reshape(-1, 1, 2)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(1, -1, 4)
    return ((points >= boxes[..., :2]) & (points <= boxes[..., 2:])).all(-1)


def _match_most(possible: np.ndarray) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of an (N, M) bool matrix, as many as can be made.

    A point in two boxes has no IoU to say whose it is, so no box may lose its point to a box that had another. A row
    without a free column looks, breadth first, for matched rows that can move to another column.
    """
    column_of, row_of = {}, {}
    for start in range(len(possible)):
        came_from, queue, free = {}, [start], None
        for row in queue:
            for column in np.flatnonzero(possible[row]).tolist():
                if column in came_from:
                    continue
                came_from[column] = row
                if column in row_of:
                    queue.append(row_of[column])
                else:
                    free = column
            if free is not None:
                break
        while free is not None:
            row = came_from[free]
            left = column_of.get(row)
            column_of[row], row_of[free] = free, row
            free = left
    return sorted(column_of.items())
