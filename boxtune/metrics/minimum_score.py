"""What every box is at every minimum score, so that a page can count without matching again.

Predictions below the minimum score are hidden, and the others are matched as in `match_images`. Lowering the minimum adds
predictions one after another, and each of them proposes to ground truth boxes as in `assign_in_turn`. A ground truth box that
is matched stays matched, and a prediction that no box accepts any more stays unmatched. So one score tells from where on a
ground truth box is found, and one score from where on a prediction has lost its match. Above the score at which a ground truth
box is found, the scores of `cause_scores` tell why it is missed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_area
from boxtune.data.records import Record
from boxtune.metrics.error_types import ERROR_TYPES, confused_points, error_types, unmatched_types
from boxtune.metrics.matching import IGNORED_SHARE, ImageMatch
from boxtune.metrics.misses import NEVER, cause_scores
from boxtune.metrics.pairs import FlatSplit, OverlappingPairs, flatten_column

# What an unmatched prediction is: inside an ignored box and not counted, or a false positive of one of the ERROR_TYPES.
EXCUSED = "excused"
UNMATCHED = (EXCUSED, *ERROR_TYPES)
# `found` of an ignored box. `found` or `lost` is NEVER if the box is never found or lost.
IGNORED = -2.0


@dataclass(frozen=True)
class Outcomes:
    """The N predictions and M ground truth boxes of a split, image after image.

    names: the classes, followed by the other predicted labels in alphabetical order; class_count: the number of classes.
    image, label, score: (N,) of the predictions; `label` is a position in `names`. unmatched: (N,) position in UNMATCHED, what
    the prediction is while it matches nothing. lost: (N,) at this minimum score and below, the prediction matches nothing.
    gt_image, gt_label: (M,). found: (M,) at this minimum score and below, the ground truth box is matched.
    cause: (len(SHOWN_CAUSES), M) as in `cause_scores`.
    confusable, confusable_gt: (K,) the pairs of a prediction and a ground truth box of different labels that overlap enough for
    a match, highest IoU first, in the order in which `confusion` matches them. For points, only those that it matches.
    """

    names: list[str]
    class_count: int
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    unmatched: np.ndarray
    lost: np.ndarray
    gt_image: np.ndarray
    gt_label: np.ndarray
    found: np.ndarray
    cause: np.ndarray
    confusable: np.ndarray
    confusable_gt: np.ndarray


def outcomes(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
    split: FlatSplit | None = None,
) -> Outcomes:
    """`split` comes from `flatten_split` with the same classes; None for points.

    `images` are the matches of all predictions.
    `classes` contain every ground-truth label.

    Points have no minimum score, and their matching is not greedy: those of `images` stay matched.
    """
    score = flatten_column((prediction["objects"]["score"] for prediction in predictions), np.float64)
    if split is None:
        labels = {label.strip() for prediction in predictions for label in prediction["objects"]["category"]}
        names = [*classes, *sorted(labels - {*classes})]
        numbers = {name: number for number, name in enumerate(names)}
        (image, label), (gt_image, gt_label) = (_flat_labels(rows, numbers) for rows in (predictions, records))
        ignored = flatten_column((record["objects"]["ignore"] for record in records), bool)
        unmatched, lost, found = _point_outcomes(records, predictions, images, classes, iou_threshold, score)
        confusable, confusable_gt = _confusable_points(records, predictions, images)
    else:
        names, ignored = split.names, split.gt_ignored
        image, label = split.predicted.image, split.predicted.label
        gt_image, gt_label = split.gt.image, split.gt.label
        area = box_area(split.predicted.boxes_xyxy)[split.pairs.prediction]
        is_inside = split.pairs.shared_area >= IGNORED_SHARE * area
        unmatched = unmatched_types(split, iou_threshold) + UNMATCHED.index(next(iter(ERROR_TYPES)))
        unmatched[split.pairs.prediction[split.is_same_class & ignored[split.pairs.gt] & is_inside]] = UNMATCHED.index(
            EXCUSED
        )
        pairs, iou, is_same = split.counted_overlaps
        is_match = is_same & (iou >= iou_threshold)
        lost, found = _match_by_score(pairs.select(is_match), iou[is_match], score, len(gt_label))
        is_other = ~is_same & (iou >= iou_threshold)
        others = pairs.select(is_other)
        best_first = np.lexsort((others.gt, others.prediction, -iou[is_other]))
        confusable, confusable_gt = others.prediction[best_first], others.gt[best_first]
    found[ignored] = IGNORED
    return Outcomes(
        names=names,
        class_count=len(classes),
        image=image,
        label=label,
        score=score,
        unmatched=unmatched,
        lost=lost,
        gt_image=gt_image,
        gt_label=gt_label,
        found=found,
        cause=cause_scores(records, predictions, iou_threshold, split),
        confusable=confusable,
        confusable_gt=confusable_gt,
    )


def _flat_labels(
    rows: Sequence[Record] | Sequence[Prediction], numbers: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(image, label number) of all objects."""
    columns = [row["objects"]["category"] for row in rows]
    label = np.array([numbers[name.strip()] for column in columns for name in column], dtype=np.int64)
    return np.repeat(np.arange(len(rows)), [len(column) for column in columns]), label


def _match_by_score(
    pairs: OverlappingPairs, iou: np.ndarray, score: np.ndarray, gt_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(`lost`, `found`) of Outcomes. `pairs` are those that may match."""
    lost, found = score.copy(), np.full(gt_count, NEVER)
    has_rival = (np.bincount(pairs.prediction, minlength=1)[pairs.prediction] > 1) | (
        np.bincount(pairs.gt, minlength=1)[pairs.gt] > 1
    )
    alone = pairs.select(~has_rival)
    lost[alone.prediction], found[alone.gt] = NEVER, score[alone.prediction]

    # The best pair comes first; ties by prediction and then by ground truth box, as in `match_images`.
    contested, iou = pairs.select(has_rival), iou[has_rival]
    best_first = np.lexsort((contested.gt, contested.prediction, -iou))
    wishes: dict[int, list[tuple[int, int]]] = defaultdict(list)  # prediction → [(rank, ground truth box)], best last
    for rank in range(len(best_first) - 1, -1, -1):
        wishes[int(contested.prediction[best_first[rank]])].append((rank, int(contested.gt[best_first[rank]])))
    holder: dict[int, tuple[int, int]] = {}  # ground truth box → (rank, prediction)
    for prediction in sorted(wishes, key=lambda i: -score[i]):
        minimum, proposing = score[prediction], prediction
        while True:
            if not wishes[proposing]:
                lost[proposing] = minimum
                break
            rank, gt = wishes[proposing].pop()
            rank_held, held_by = holder.get(gt, (len(best_first), -1))
            if rank > rank_held:
                continue
            holder[gt] = (rank, proposing)
            lost[proposing] = NEVER
            if held_by < 0:
                found[gt] = minimum
                break
            proposing = held_by
    return lost, found


def _point_outcomes(
    records: list[Record],
    predictions: list[Prediction],
    images: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
    score: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(`unmatched`, `lost`, `found`) of Outcomes for points."""
    kinds, lost, found = [], score.copy(), np.full(sum(len(record["objects"]["ignore"]) for record in records), NEVER)
    first = first_gt = 0
    for record, prediction, match in zip(records, predictions, images, strict=True):
        count = len(prediction["objects"]["category"])
        every = replace(match, false_positives=list(range(count)))
        types = error_types(record, prediction, every, classes, iou_threshold) | dict.fromkeys(match.excused, EXCUSED)
        kinds += [UNMATCHED.index(types[i]) for i in range(count)]
        for i, j, _ in match.pairs:
            lost[first + i], found[first_gt + j] = NEVER, score[first + i]
        first, first_gt = first + count, first_gt + len(record["objects"]["ignore"])
    return np.array(kinds, dtype=np.int64), lost, found


def _confusable_points(
    records: list[Record], predictions: list[Prediction], images: list[ImageMatch]
) -> tuple[np.ndarray, np.ndarray]:
    """(`confusable`, `confusable_gt`) of Outcomes for points."""
    chosen, chosen_gt, first, first_gt = [], [], 0, 0
    for record, prediction, match in zip(records, predictions, images, strict=True):
        for i, j in confused_points(record, prediction, match):
            chosen.append(first + i)
            chosen_gt.append(first_gt + j)
        first, first_gt = first + len(prediction["objects"]["category"]), first_gt + len(record["objects"]["category"])
    return np.array(chosen, dtype=np.int64), np.array(chosen_gt, dtype=np.int64)
