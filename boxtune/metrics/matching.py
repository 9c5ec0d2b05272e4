"""Which prediction answers which truth box of its image: class-aware, one-to-one, the best pair first."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from boxtune.data.boxes import box_area
from boxtune.metrics.pairs import FlatBoxes, assign, column_of, flatten, overlaps

# An unmatched prediction is excused when this share of it lies inside an ignored box of its class.
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class ImageMatch:
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


def match_images(records: list[dict], predictions: list[dict], iou_threshold: float = 0.5) -> list[ImageMatch]:
    """Match `predictions[i]` with `records[i]`: class-aware, one-to-one, the best pair first."""
    if is_click(predictions):
        return [_score_points(*pair) for pair in zip(records, predictions, strict=True)]
    return _score_boxes(records, predictions, iou_threshold)


def scored_hits(images: list[ImageMatch], predictions: list[dict]) -> tuple[list[float], list[bool]]:
    """(scores, whether each is a true positive) of all objects that count."""
    scores, hits = [], []
    for image, prediction in zip(images, predictions, strict=True):
        matched = {i for i, *_ in image.pairs}
        counted = sorted(matched | {*image.false})
        scores += [prediction["objects"]["score"][i] for i in counted]
        hits += [i in matched for i in counted]
    return scores, hits


def worst_first(scores: list[ImageMatch]) -> list[int]:
    """Positions in `scores`: most errors first, then lower mean IoU, then the order of the split."""

    def badness(i: int) -> tuple:
        iou = scores[i].mean_iou
        return (-scores[i].errors, 1.0 if iou is None else iou, i)

    return sorted(range(len(scores)), key=badness)


def is_click(predictions: Iterable[dict]) -> bool:
    """Whether the answers are points. Boxes and points are never mixed in one run."""
    return any("point" in prediction["objects"] for prediction in predictions)


def _score_boxes(records: list[dict], predictions: list[dict], threshold: float) -> list[ImageMatch]:
    """All images at once, as flat arrays, since a split may hold many thousand small images."""
    names = {label.strip() for source in (*records, *predictions) for label in source["objects"]["category"]}
    numbers = {name: i for i, name in enumerate(sorted(names))}
    truth, answers = flatten(records, numbers), flatten(predictions, numbers)
    ignored, area = column_of(records, "ignore", bool), box_area(answers.boxes_xyxy)
    rows, columns, shared = overlaps(
        answers.image * len(names) + answers.label,
        answers.boxes_xyxy,
        truth.image * len(names) + truth.label,
        truth.boxes_xyxy,
    )
    excused = np.zeros(len(area), dtype=bool)
    inside = shared >= IGNORED_SHARE * area[rows]
    excused[rows[ignored[columns] & inside]] = True
    rows, columns, shared = (values[~ignored[columns]] for values in (rows, columns, shared))
    iou = shared / (area[rows] + box_area(truth.boxes_xyxy)[columns] - shared)
    # The best pair comes first, so the matching at a threshold is the head of the one without: one serves both.
    ranks = np.empty(len(iou), dtype=np.int64)
    ranks[np.lexsort((columns, rows, -iou))] = np.arange(len(iou))
    wanted = np.lexsort((ranks, rows))
    made = wanted[assign(rows[wanted], columns[wanted], ranks[wanted], np.zeros(len(iou), dtype=bool))]
    partner, ious = np.full(len(ignored), -1), np.zeros(len(ignored))
    partner[columns[made]], ious[columns[made]] = rows[made], iou[made]
    found = (partner >= 0) & (ious >= threshold)
    hits = np.flatnonzero(found)[np.argsort(partner[found])]  # truth, in the order of the answers
    unmatched = np.ones(len(area), dtype=bool)
    unmatched[partner[hits]] = False
    on_found = np.zeros(len(area), dtype=bool)
    on_found[rows[(iou >= threshold) & found[columns]]] = True

    def by_image(boxes: FlatBoxes, which: np.ndarray) -> list[list[int]]:
        """Numbers of all boxes as numbers within their image, image by image."""
        first = np.searchsorted(boxes.image, np.arange(len(records)))
        image = boxes.image[which]
        return _split(which - first[image], image, len(records))

    lists = zip(
        records,
        by_image(answers, partner[hits]),
        by_image(truth, hits),
        _split(ious[hits], truth.image[hits], len(records)),
        by_image(answers, np.flatnonzero(unmatched & ~excused)),
        by_image(answers, np.flatnonzero(unmatched & ~excused & on_found)),
        by_image(answers, np.flatnonzero(unmatched & excused)),
        by_image(truth, np.flatnonzero(~ignored & ~found)),
        _split(ious[~ignored], truth.image[~ignored], len(records)),
        strict=True,
    )
    return [
        ImageMatch(record["id"], list(zip(matched, partners, pair_ious, strict=True)), *rest)
        for record, matched, partners, pair_ious, *rest in lists
    ]


def _split(values: np.ndarray, image: np.ndarray, images: int) -> list[list]:
    """One list for each image; `image` rises."""
    return [part.tolist() for part in np.split(values, np.searchsorted(image, np.arange(1, images)))][:images]


def _score_points(record: dict, prediction: dict) -> ImageMatch:
    truth, answers = record["objects"], prediction["objects"]
    counted = [j for j, is_ignored in enumerate(truth["ignore"]) if not is_ignored]
    ignored = [j for j, is_ignored in enumerate(truth["ignore"]) if is_ignored]
    hits = point_in_box(answers["point"], truth["bbox"]) & same_label(answers["category"], truth["category"])
    partners = dict(match_most(hits[:, counted]))
    matched = [counted[column] for column in partners.values()]
    unmatched = [i for i in range(len(answers["category"])) if i not in partners]
    false = [i for i in unmatched if not hits[i, ignored].any()]
    return ImageMatch(
        id=record["id"],
        pairs=[(i, counted[column], None) for i, column in partners.items()],
        false=false,
        duplicates=[i for i in false if hits[i, matched].any()],
        excused=[i for i in unmatched if hits[i, ignored].any()],
        missed=[j for j in counted if j not in matched],
        ious=[],
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


def match_most(possible: np.ndarray) -> list[tuple[int, int]]:
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
