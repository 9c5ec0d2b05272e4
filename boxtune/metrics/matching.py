"""Which prediction matches which ground truth box of its image: class-aware, one-to-one, highest IoU first."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_area
from boxtune.data.records import Record
from boxtune.metrics.pairs import FlatBoxes, FlatSplit, OverlappingPairs, assign_in_turn, flatten_split

# An unmatched prediction is not counted when at least this share of its area is inside an ignored box of its class.
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class ImageMatch:
    """The result of one image. Predictions and ground truth boxes are given by their positions in the lists of `objects`.

    pairs: (prediction, ground truth box, IoU) of the true positives, by prediction; for points the IoU is None.
    false_positives: predictions that match nothing, including the `duplicates`, whose object is matched by another prediction.
    excused: unmatched predictions inside an ignored box; they are not counted.
    missed: ground truth boxes without a match, the false negatives.
    ious: one IoU per ground truth box that is not ignored, from a one-to-one matching without IoU threshold; 0 for a box
    without a partner. Empty for points.
    """

    id: str
    pairs: list[tuple[int, int, float | None]]
    false_positives: list[int]
    duplicates: list[int]
    excused: list[int]
    missed: list[int]
    ious: list[float]

    @property
    def tp(self) -> int:
        return len(self.pairs)

    @property
    def fp(self) -> int:
        return len(self.false_positives)

    @property
    def fn(self) -> int:
        return len(self.missed)

    @property
    def errors(self) -> int:
        return self.fp + self.fn

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU over the image's ground truth boxes; None without such boxes, and for points."""
        return float(np.mean(self.ious)) if self.ious else None


def match_images(
    records: list[Record],
    predictions: list[Prediction],
    iou_threshold: float = 0.5,
    split: FlatSplit | None = None,
) -> list[ImageMatch]:
    """Match `predictions[i]` with `records[i]`. `split` are their boxes, if they are flattened already.

    Boxes are matched one-to-one within their class, highest IoU first, down to `iou_threshold`. Points match a box of their
    class that contains them, so that as many points as possible are matched.

    Example with one class and ground truth boxes A = [0, 0, 100, 10] and B = [30, 0, 130, 10]:

        prediction P = [25, 0, 125, 10]   IoU with A 0.60, with B 0.90
        prediction Q = [41, 0, 141, 10]   IoU with A 0.42, with B 0.80

    The highest IoU is that of P and B, so they are paired. Then P and B are taken, and only Q and A remain. Their IoU is below
    0.5, so A is missed and Q is a false positive; Q is also a duplicate because its IoU with the matched B is at least 0.5.
    `ious` has no threshold: 0.42 for A and 0.90 for B.
    """
    if is_click(predictions):
        return [_match_points(*pair) for pair in zip(records, predictions, strict=True)]
    return _match_boxes(records, split or flatten_split(records, predictions, []), iou_threshold)


def scored_hits(images: list[ImageMatch], predictions: list[Prediction]) -> tuple[list[float], list[bool]]:
    """(score, is it a true positive) of all predictions that count, as two lists."""
    scores: list[float] = []
    hits: list[bool] = []
    for image, prediction in zip(images, predictions, strict=True):
        matched = {i for i, *_ in image.pairs}
        counted = sorted(matched | {*image.false_positives})
        scores += [prediction["objects"]["score"][i] for i in counted]
        hits += [i in matched for i in counted]
    return scores, hits


def worst_first(images: list[ImageMatch]) -> list[int]:
    """Positions in `images`: most errors first, then lowest mean IoU, then the order of the split."""

    def sort_key(i: int) -> tuple[int, float, int]:
        mean_iou = images[i].mean_iou
        return -images[i].errors, 1.0 if mean_iou is None else mean_iou, i

    return sorted(range(len(images)), key=sort_key)


def is_click(predictions: Iterable[Prediction]) -> bool:
    """Whether the predictions are points. One run never mixes boxes and points."""
    return any("point" in prediction["objects"] for prediction in predictions)


# ---- boxes -------------------------------------------------------------------------------------------------------------


def _match_boxes(records: list[Record], split: FlatSplit, iou_threshold: float) -> list[ImageMatch]:
    """All images in one pass over flat arrays, because a split may hold many thousand small images."""
    predicted, gt, gt_ignored = split.predicted, split.gt, split.gt_ignored
    predicted_area, gt_area = box_area(predicted.boxes_xyxy), box_area(gt.boxes_xyxy)
    pairs = split.pairs.select(split.is_same_class)

    # Predictions that are not counted if nothing matches them.
    is_inside = pairs.shared_area >= IGNORED_SHARE * predicted_area[pairs.prediction]
    excusable = _mark(len(predicted_area), pairs.prediction[gt_ignored[pairs.gt] & is_inside])

    # Pairs are chosen in order of falling IoU. So the pairs of a matching without threshold whose IoU reaches the threshold
    # are the matching with the threshold, and one matching serves both.
    pairs = pairs.select(~gt_ignored[pairs.gt])
    iou = pairs.shared_area / (predicted_area[pairs.prediction] + gt_area[pairs.gt] - pairs.shared_area)
    partner, partner_iou = match_best_first(pairs, iou, gt_count=len(gt_area))
    is_matched = (partner >= 0) & (partner_iou >= iou_threshold)  # (ground truth boxes,)

    matched_gt = np.flatnonzero(is_matched)[np.argsort(partner[is_matched])]  # in the order of their predictions
    unmatched = ~_mark(len(predicted_area), partner[matched_gt])
    on_matched_gt = _mark(len(predicted_area), pairs.prediction[(iou >= iou_threshold) & is_matched[pairs.gt]])

    def per_image(boxes: FlatBoxes, chosen: np.ndarray) -> list[list[int]]:
        return _positions_per_image(boxes, chosen, len(records))

    matched_predictions = per_image(predicted, partner[matched_gt])
    matched_boxes = per_image(gt, matched_gt)
    matched_ious = _split_per_image(partner_iou[matched_gt], gt.image[matched_gt], len(records))
    false_positives = per_image(predicted, np.flatnonzero(unmatched & ~excusable))
    duplicates = per_image(predicted, np.flatnonzero(unmatched & ~excusable & on_matched_gt))
    excused = per_image(predicted, np.flatnonzero(unmatched & excusable))
    missed = per_image(gt, np.flatnonzero(~gt_ignored & ~is_matched))
    ious = _split_per_image(partner_iou[~gt_ignored], gt.image[~gt_ignored], len(records))
    return [
        ImageMatch(
            id=record["id"],
            pairs=list(zip(matched_predictions[i], matched_boxes[i], matched_ious[i], strict=True)),
            false_positives=false_positives[i],
            duplicates=duplicates[i],
            excused=excused[i],
            missed=missed[i],
            ious=ious[i],
        )
        for i, record in enumerate(records)
    ]


def match_best_first(pairs: OverlappingPairs, iou: np.ndarray, gt_count: int) -> tuple[np.ndarray, np.ndarray]:
    """One-to-one matching of (P,) pairs, highest IoU first; ties by prediction and then by ground truth box.

    Returns (M,) the prediction matched with each ground truth box, −1 for none, and (M,) the IoU, 0 for none.
    """
    pair_count = len(iou)
    best_first = np.lexsort((pairs.gt, pairs.prediction, -iou))
    rank = np.empty(pair_count, dtype=np.int64)
    rank[best_first] = np.arange(pair_count)
    by_prediction = np.lexsort((rank, pairs.prediction))
    chosen = by_prediction[
        assign_in_turn(
            rows=pairs.prediction[by_prediction],
            columns=pairs.gt[by_prediction],
            ranks=rank[by_prediction],
            is_shared=np.zeros(pair_count, dtype=bool),
        )
    ]
    partner, partner_iou = np.full(gt_count, -1), np.zeros(gt_count)
    partner[pairs.gt[chosen]] = pairs.prediction[chosen]
    partner_iou[pairs.gt[chosen]] = iou[chosen]
    return partner, partner_iou


def _mark(count: int, positions: np.ndarray) -> np.ndarray:
    """(count,) bool: true at `positions`."""
    marked = np.zeros(count, dtype=bool)
    marked[positions] = True
    return marked


def _positions_per_image(boxes: FlatBoxes, chosen: np.ndarray, image_count: int) -> list[list[int]]:
    """`chosen` positions in the flat arrays, ordered by image, as positions within each image."""
    first = np.searchsorted(boxes.image, np.arange(image_count))
    image = boxes.image[chosen]
    return _split_per_image(chosen - first[image], image, image_count)


def _split_per_image(values: np.ndarray, image: np.ndarray, image_count: int) -> list[list]:
    """(N,) values as one list per image. `image`: (N,) the image of each value, in ascending order."""
    items, bounds = values.tolist(), np.searchsorted(image, np.arange(image_count + 1)).tolist()
    return [items[start:end] for start, end in pairwise(bounds)]


# ---- points ------------------------------------------------------------------------------------------------------------


def _match_points(record: Record, prediction: Prediction) -> ImageMatch:
    gt, predicted = record["objects"], prediction["objects"]
    counted = [j for j, is_ignored in enumerate(gt["ignore"]) if not is_ignored]
    ignored = [j for j, is_ignored in enumerate(gt["ignore"]) if is_ignored]
    # (points, ground truth boxes) bool
    is_hit = point_in_box(predicted["point"], gt["bbox"]) & same_label(predicted["category"], gt["category"])
    pairs = [(i, counted[column]) for i, column in maximum_matching(is_hit[:, counted])]
    matched_points, matched_gt = {i for i, _ in pairs}, [j for _, j in pairs]
    unmatched = [i for i in range(len(predicted["category"])) if i not in matched_points]
    false_positives = [i for i in unmatched if not is_hit[i, ignored].any()]
    return ImageMatch(
        id=record["id"],
        pairs=[(i, j, None) for i, j in pairs],
        false_positives=false_positives,
        duplicates=[i for i in false_positives if is_hit[i, matched_gt].any()],
        excused=[i for i in unmatched if is_hit[i, ignored].any()],
        missed=[j for j in counted if j not in matched_gt],
        ious=[],
    )


def same_label(labels_a: list[str], labels_b: list[str]) -> np.ndarray:
    """(N, M) bool: whether the labels are equal apart from surrounding spaces."""
    a, b = ([label.strip() for label in labels] for labels in (labels_a, labels_b))
    return np.array([[x == y for y in b] for x in a], dtype=bool).reshape(len(a), len(b))


def point_in_box(points_xy: list[list[float]], boxes_xyxy: list[list[float]]) -> np.ndarray:
    """(N, M) bool: whether the point is inside the box or on its border."""
    x, y = np.asarray(points_xy, dtype=np.float64).reshape(-1, 2).T[:, :, None]
    x0, y0, x1, y1 = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4).T
    inside: np.ndarray = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    return inside


def maximum_matching(allowed: np.ndarray) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of an (N, M) bool matrix, as many pairs as possible.

    Points have no IoU that says which of two boxes a point belongs to. A greedy choice could take the only box of another
    point, so rows that are matched already move to another column where that helps (augmenting paths, Berge 1957).

    Example: row 0 may have columns 0 and 1, row 1 only column 0. Row 0 takes column 0 first; then row 1 takes column 0, and
    row 0 moves to column 1.
    """
    column_of: dict[int, int] = {}
    row_of: dict[int, int] = {}
    for row in range(len(allowed)):
        for path_row, path_column in _augmenting_path(row, allowed, row_of, column_of):
            column_of[path_row], row_of[path_column] = path_column, path_row
    return sorted(column_of.items())


def _augmenting_path(
    start: int, allowed: np.ndarray, row_of: dict[int, int], column_of: dict[int, int]
) -> list[tuple[int, int]]:
    """The moves (row, new column) that give the row `start` a column; empty if that is impossible.

    Searches breadth first for a free column: `start` may take the column of another row if that row can move.
    """
    reached_from: dict[int, int] = {}  # column → the row that would take it
    queue, free_column = [start], None
    for row in queue:
        for column in np.flatnonzero(allowed[row]).tolist():
            if column in reached_from:
                continue
            reached_from[column] = row
            if column in row_of:
                queue.append(row_of[column])
            else:
                free_column = column
        if free_column is not None:
            break
    moves = []
    while free_column is not None:
        row = reached_from[free_column]
        moves.append((row, free_column))
        free_column = column_of.get(row)  # the column that the row leaves; None for `start`
    return moves
