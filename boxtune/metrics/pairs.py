"""All boxes of a split in flat arrays: which boxes overlap, and how overlapping boxes are assigned to each other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_area
from boxtune.data.records import Record

# Number of pairs compared at a time. It bounds the memory when images hold hundreds of boxes, and the arrays stay in the cache.
CHUNK = 1 << 16


@dataclass(frozen=True)
class FlatBoxes:
    """The N boxes of many images, image after image.

    image: (N,) position of each box's image in the split. label: (N,) class number, −1 for an unknown class.
    boxes_xyxy: (N, 4) in pixels.
    """

    image: np.ndarray
    label: np.ndarray
    boxes_xyxy: np.ndarray

    def group(self, class_count: int) -> np.ndarray:
        """(N,) one number for each combination of image and class. Defined only if no class is unknown."""
        group: np.ndarray = self.image * class_count + self.label
        return group


def flatten_boxes(sources: Sequence[Record] | Sequence[Prediction], class_numbers: dict[str, int]) -> FlatBoxes:
    """The boxes of records or predictions. `class_numbers` maps each stripped class name to its number."""
    objects = [source["objects"] for source in sources]
    labels = [class_numbers.get(name.strip(), -1) for columns in objects for name in columns["category"]]
    boxes = [box for columns in objects for box in columns["bbox"]]
    return FlatBoxes(
        image=np.repeat(np.arange(len(objects)), [len(columns["category"]) for columns in objects]),
        label=np.array(labels, dtype=np.int64),
        boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
    )


def flatten_column(columns: Iterable[Sequence], dtype: type) -> np.ndarray:
    """(N,) the values of one list per image, in the order of `flatten_boxes`."""
    return np.array([value for column in columns for value in column], dtype=dtype)


@dataclass(frozen=True)
class OverlappingPairs:
    """P pairs of a prediction and a ground truth box that overlap, ordered by prediction and then by ground truth box.

    prediction, gt: (P,) positions in the flat arrays. shared_area: (P,) area of the intersection in square pixels.
    """

    prediction: np.ndarray
    gt: np.ndarray
    shared_area: np.ndarray

    def select(self, chosen: np.ndarray) -> "OverlappingPairs":
        """The pairs where `chosen`, (P,) bool, is true."""
        return OverlappingPairs(self.prediction[chosen], self.gt[chosen], self.shared_area[chosen])


def overlapping_pairs(
    *,
    prediction_group: np.ndarray,
    prediction_boxes_xyxy: np.ndarray,
    gt_group: np.ndarray,
    gt_boxes_xyxy: np.ndarray,
) -> OverlappingPairs:
    """All pairs of the same group (see `FlatBoxes.group`) whose boxes share an area above 0.

    prediction_group: (N,), prediction_boxes_xyxy: (N, 4), gt_group: (M,), gt_boxes_xyxy: (M, 4).
    Boxes of different groups are never compared, so the cost grows with the pairs within groups and not with N × M.
    """
    gt_by_group = np.argsort(gt_group, kind="stable")
    first = np.searchsorted(gt_group, prediction_group, side="left", sorter=gt_by_group)
    last = np.searchsorted(gt_group, prediction_group, side="right", sorter=gt_by_group)
    prediction_x0, prediction_x1 = (np.ascontiguousarray(prediction_boxes_xyxy[:, k]) for k in (0, 2))
    gt_x0, gt_x1 = (np.ascontiguousarray(gt_boxes_xyxy[:, k]) for k in (0, 2))
    candidate_count = last - first  # (N,) ground truth boxes in each prediction's group
    parts = []
    for start, stop in _chunks(candidate_count):
        counts = candidate_count[start:stop]
        prediction = np.repeat(np.arange(start, stop), counts)
        gt = gt_by_group[np.repeat(first[start:stop], counts) + count_up(counts)]
        # Most candidates do not overlap in x; the others alone are compared in y.
        x_overlaps = (prediction_x1[prediction] > gt_x0[gt]) & (gt_x1[gt] > prediction_x0[prediction])
        prediction, gt = prediction[x_overlaps], gt[x_overlaps]
        area, is_overlapping = intersection_area(prediction_boxes_xyxy[prediction], gt_boxes_xyxy[gt])
        parts.append((prediction[is_overlapping], gt[is_overlapping], area[is_overlapping]))
    prediction, gt, shared_area = (np.concatenate(column) for column in zip(*parts, strict=True))
    return OverlappingPairs(prediction, gt, shared_area)


@dataclass(frozen=True)
class FlatSplit:
    """The boxes of a split in flat arrays. Matching, average precision and the report share one, so nothing is compared twice.

    names: the classes, followed by all other labels in alphabetical order; `label` in `predicted` and `gt` is a position in it.
    class_count: the number of classes. gt_ignored: (M,) bool.
    """

    names: list[str]
    class_count: int
    predicted: FlatBoxes
    gt: FlatBoxes
    gt_ignored: np.ndarray

    @cached_property
    def pairs(self) -> OverlappingPairs:
        """All overlapping pairs of one image, whatever their classes."""
        return overlapping_pairs(
            prediction_group=self.predicted.image,
            prediction_boxes_xyxy=self.predicted.boxes_xyxy,
            gt_group=self.gt.image,
            gt_boxes_xyxy=self.gt.boxes_xyxy,
        )

    @cached_property
    def is_same_class(self) -> np.ndarray:
        """(P,) bool: whether both boxes of a pair have the same label."""
        same: np.ndarray = self.predicted.label[self.pairs.prediction] == self.gt.label[self.pairs.gt]
        return same

    @cached_property
    def counted_overlaps(self) -> tuple[OverlappingPairs, np.ndarray, np.ndarray]:
        """(pairs of predictions and ground truth that is not ignored, their IoU, is the class the same), each (P,)."""
        is_counted = ~self.gt_ignored[self.pairs.gt]
        pairs = self.pairs.select(is_counted)
        area, gt_area = box_area(self.predicted.boxes_xyxy), box_area(self.gt.boxes_xyxy)
        iou = pairs.shared_area / (area[pairs.prediction] + gt_area[pairs.gt] - pairs.shared_area)
        return pairs, iou, self.is_same_class[is_counted]


def flatten_split(records: Sequence[Record], predictions: Sequence[Prediction], classes: Sequence[str]) -> FlatSplit:
    """The boxes of `records` and `predictions[i]`, which belongs to `records[i]`. `classes` are stripped; they may be empty."""
    labels = {name for record in records for name in record["objects"]["category"]}
    labels |= {name for prediction in predictions for name in prediction["objects"]["category"]}
    names = [*classes, *sorted({name.strip() for name in labels} - {*classes})]
    numbers = {name: number for number, name in enumerate(names)}
    ignored = flatten_column((record["objects"]["ignore"] for record in records), bool)
    return FlatSplit(names, len(classes), flatten_boxes(predictions, numbers), flatten_boxes(records, numbers), ignored)


def _chunks(candidate_count: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of predictions with about CHUNK candidates each."""
    cuts = np.searchsorted(np.cumsum(candidate_count), np.arange(CHUNK, candidate_count.sum(), CHUNK))
    return pairwise([0, *cuts.tolist(), len(candidate_count)])


def intersection_area(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(areas, is the area above 0), both (P,), of the boxes a_xyxy[i] and b_xyxy[i]. Areas are undefined without overlap."""
    sides = np.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - np.maximum(a_xyxy[:, :2], b_xyxy[:, :2])
    area = sides[:, 0] * sides[:, 1]
    # Two positive sides can have a product that rounds to 0.
    return area, (sides > 0).all(axis=1) & (area > 0)


def count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, … up to each count minus one: [2, 0, 3] → [0, 1, 0, 1, 2]."""
    starts = np.cumsum(counts) - counts
    numbers: np.ndarray = np.arange(counts.sum()) - np.repeat(starts, counts)
    return numbers


def assign_in_turn(*, rows: np.ndarray, columns: np.ndarray, ranks: np.ndarray, is_shared: np.ndarray) -> np.ndarray:
    """Let the rows choose one after another, each its first free column. Returns (K,) positions of the chosen pairs.

    rows, columns: (P,) the allowed pairs, ordered by row, and each row's pairs by its preference.
    ranks: (P,) the turn of the pair's row; the lowest chooses first. The ranks of one column's pairs must differ.
    is_shared: (P,) bool, whether the pair's column stays free when it is chosen.

    Example: row 0 prefers column 7 to column 8, row 1 accepts only column 7, and row 1 chooses first.

        >>> assign_in_turn(
        ...     rows=np.array([0, 0, 1]),
        ...     columns=np.array([7, 8, 7]),
        ...     ranks=np.array([1, 1, 0]),
        ...     is_shared=np.array([False, False, False]),
        ... )
        array([1, 2])

    A loop over rows would be slow in Python. Instead all rows propose at once: first to the column that they prefer; each column
    rejects all but the lowest rank; a rejected row proposes to its next column, and so on. The result is the same. This is
    deferred acceptance (Gale and Shapley 1962, "College admissions and the stability of marriage").

    Ranks may also belong to pairs instead of rows, such as the position in a list of pairs sorted by IoU, if each row's
    preferences have the same order. Then the result is that of going through that list and taking each pair that is free.
    """
    proposal = np.flatnonzero(np.diff(rows, prepend=-1))  # the first pair of every row
    end = np.append(proposal[1:], len(rows))  # where the pairs of every row end
    lowest_rank = np.empty(columns.max(initial=-1) + 1, ranks.dtype)
    while True:
        wanted = columns[proposal]
        lowest_rank[wanted] = ranks[proposal]
        np.minimum.at(lowest_rank, wanted, ranks[proposal])
        is_rejected = (ranks[proposal] > lowest_rank[wanted]) & ~is_shared[proposal]
        if not is_rejected.any():
            return proposal
        proposal = proposal + is_rejected
        has_proposal = proposal < end  # the other rows have been rejected by every column
        proposal, end = proposal[has_proposal], end[has_proposal]
