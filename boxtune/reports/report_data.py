"""What report.js needs to count and draw at any minimum score, in a size that does not grow with the split.

Columns of numbers are base64 of little-endian arrays, which a browser reads faster than JSON.
"""

import base64
import json
from typing import Any

import numpy as np

from boxtune.answers.predictions import Prediction, place_column, response_text
from boxtune.data.boxes import COCO_SIZE_LIMITS, box_area
from boxtune.data.records import Record
from boxtune.metrics.matching import ImageMatch
from boxtune.metrics.minimum_score import EXCUSED, IGNORED, UNMATCHED, Outcomes
from boxtune.metrics.misses import SHOWN_CAUSES

# A page draws at most this many objects of one image, and errors before correct ones.
MAX_DRAWN = 500
# Bytes of the objects and of the responses of all images that are shown.
OBJECT_BYTES, TEXT_BYTES = 8_000_000, 2_000_000
# Rows of the counts. If there are more, the minimum score is limited to multiples of 1 / 1000, or of a coarser step.
MAX_ROWS = 200_000
STEPS = (1000, 200, 100, 20)
# What the rows of the counts may be: an unmatched prediction, a true positive, or ground truth that is missed for a cause.
HIT = "hit"
MISSED = [f"missed_{cause}" for cause in SHOWN_CAUSES]
KINDS = [*UNMATCHED, HIT, *MISSED]


def counts_data(outcomes: Outcomes) -> dict[str, Any]:
    """All that is counted, of all images, without loss.

    groups: [position in `names`, one of KINDS, number of rows]; those of MISSED have position −1. value: the minimum score at
    which each row begins to count, descending within its group; count: how many boxes begin to count there, negative where more
    cease to. steps: 0, or the minimum score must be a multiple of 1 / steps. The values are then rounded down to one, which
    leaves the counts at multiples as they are.
    """
    is_lost, is_found = outcomes.lost >= 0, outcomes.found >= 0
    missed, missed_kind, begin, end = _missed_intervals(outcomes)
    missed_kind, is_ended = missed_kind + KINDS.index(MISSED[0]), end >= 0
    ended_kind = missed_kind[is_ended]
    hits = np.full(is_found.sum(), KINDS.index(HIT))
    no_label = np.full(len(missed) + len(ended_kind), -1)
    label = np.concatenate([outcomes.label[is_lost], outcomes.gt_label[is_found], no_label])
    kind = np.concatenate([outcomes.unmatched[is_lost], hits, missed_kind, ended_kind])
    exact = np.concatenate([outcomes.lost[is_lost], outcomes.found[is_found], begin, end[is_ended]])
    change = np.ones(len(label), dtype=np.int64)
    change[len(label) - len(ended_kind) :] = -1
    for steps in (0, *STEPS):
        value = _round_down(exact, steps) if steps else exact
        order = np.lexsort((-value, kind, label))
        rows = np.stack([label[order], kind[order], value[order]])  # whole numbers this small are exact as floats
        first = np.flatnonzero(np.append(True, (np.diff(rows) != 0).any(axis=0))[: rows.shape[1]])
        if len(first) <= MAX_ROWS:
            break
    count = np.add.reduceat(change[order], first) if len(first) else first
    rows = rows[:, first]
    group = np.flatnonzero(np.append(True, (np.diff(rows[:2]) != 0).any(axis=0))[: rows.shape[1]])
    return {
        "groups": [
            [int(rows[0, i]), KINDS[int(rows[1, i])], int(size)]
            for i, size in zip(group, np.diff(np.append(group, rows.shape[1])), strict=True)
        ],
        "value": _encoded(rows[2], "<f8"),
        "count": _encoded(count, "<i4") if (count != 1).any() else None,
        "steps": steps,
        "gt": np.bincount(outcomes.gt_label[outcomes.found != IGNORED], minlength=outcomes.class_count).tolist(),
    }


def _round_down(values: np.ndarray, steps: int) -> np.ndarray:
    """The highest k / steps, as a float, that is not above the value."""
    k = np.floor(values * steps)
    k = np.where(k / steps > values, k - 1, k)
    rounded: np.ndarray = np.where((k + 1) / steps <= values, k + 1, k) / steps
    return rounded


def _missed_intervals(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ground truth box, position in SHOWN_CAUSES, begin, end), each (R,): up to the minimum score `begin` and above `end`, the
    box is missed for this cause. Above all its intervals there is no box near it."""
    gt, kind, begin, end = [], [], [], []
    level = outcomes.found
    for k, score in enumerate(outcomes.cause):
        own = np.flatnonzero((score > level) & (outcomes.found != IGNORED))
        gt.append(own)
        kind.append(np.full(len(own), k))
        begin.append(score[own])
        end.append(level[own])
        level = np.maximum(level, score)
    return np.concatenate(gt), np.concatenate(kind), np.concatenate(begin), np.concatenate(end)


def object_bytes(outcomes: Outcomes, image_count: int) -> np.ndarray:
    """(images,) about how many bytes of the page the objects of each image take."""
    predicted = np.bincount(outcomes.image, minlength=image_count)
    gt = np.bincount(outcomes.gt_image, minlength=image_count)
    intervals = np.bincount(outcomes.gt_image[_missed_intervals(outcomes)[0]], minlength=image_count)
    confusable = np.bincount(outcomes.gt_image[outcomes.confusable_gt], minlength=image_count)
    drawn = np.minimum(predicted + gt, MAX_DRAWN)
    size: np.ndarray = 30 * predicted + 18 * gt + 18 * intervals + 11 * confusable + 43 * drawn
    return size


def gallery_data(
    records: list[Record],
    predictions: list[Prediction],
    matches: list[ImageMatch],
    outcomes: Outcomes,
    positions: list[int],
) -> dict[str, Any]:
    """The images at `positions`: {"images": one entry per image, "gt", "predictions": columns of the objects of all of them,
    "missed": columns of `_missed_intervals` without their ends, "confusable": pairs as in Outcomes}.

    In "missed" and "confusable", objects are given by their positions in the columns.
    An entry tells how many objects of the columns are its own: `gt`, `predictions`, and of how many of them there is a place:
    `gt_drawn`, `predictions_drawn`. If those are not all, they are the first, and errors come first.
    """
    image_range = np.arange(len(records) + 1)
    first, first_gt = (np.searchsorted(image, image_range) for image in (outcomes.image, outcomes.gt_image))
    pair_order = np.argsort(outcomes.gt_image[outcomes.confusable_gt], kind="stable")
    pair_ends = np.searchsorted(outcomes.gt_image[outcomes.confusable_gt][pair_order], image_range)
    entries: list[dict[str, Any]] = []
    chosen, chosen_gt = [], []
    boxes: list[list[float]] = []  # or points
    gt_boxes: list[list[float]] = []
    places, gt_places = [], []
    longest = _longest_text([response_text(predictions[i]) for i in positions])
    for i in positions:
        record, prediction = records[i], predictions[i]
        own, own_gt = np.arange(first[i], first[i + 1]), np.arange(first_gt[i], first_gt[i + 1])
        is_whole = len(own) + len(own_gt) <= MAX_DRAWN
        drawn = len(own) if is_whole else min(len(own), max(MAX_DRAWN // 2, MAX_DRAWN - len(own_gt)))
        gt_drawn = len(own_gt) if is_whole else min(len(own_gt), MAX_DRAWN - drawn)
        if not is_whole:  # errors first
            is_error = (outcomes.lost[own] >= 0) & (outcomes.unmatched[own] != UNMATCHED.index(EXCUSED))
            own = own[np.argsort(~is_error, kind="stable")]
            own_gt = own_gt[np.argsort(outcomes.found[own_gt] >= 0, kind="stable")]
        column, gt_column = prediction["objects"][place_column(prediction["objects"])], record["objects"]["bbox"]
        boxes += (own_places := [column[k] for k in (own - first[i]).tolist()])
        gt_boxes += (own_gt_places := [gt_column[k] for k in (own_gt - first_gt[i]).tolist()])
        places += own_places[:drawn]
        gt_places += own_gt_places[:gt_drawn]
        chosen.append(own)
        chosen_gt.append(own_gt)
        entries.append(
            {
                "id": record["id"],
                "image": record["image"],
                "width": record["width"],
                "height": record["height"],
                "text": _cut(response_text(prediction), longest),
                "seconds": prediction["seconds"],
                "problems": prediction["problems"],
                "mean_iou": matches[i].mean_iou,
                "gt": len(own_gt),
                "predictions": len(own),
                "gt_drawn": gt_drawn,
                "predictions_drawn": drawn,
                "confusable": int(pair_ends[i + 1] - pair_ends[i]),
            }
        )
    own, own_gt = (np.concatenate([np.zeros(0, dtype=np.int64), *rows]) for rows in (chosen, chosen_gt))
    place_of, gt_place_of = _positions_in(own, len(outcomes.label)), _positions_in(own_gt, len(outcomes.gt_label))
    pairs = np.concatenate([pair_order[:0], *(pair_order[pair_ends[i] : pair_ends[i + 1]] for i in positions)])
    missed, missed_kind, begin, _ = _missed_intervals(outcomes)
    is_own = gt_place_of[missed] >= 0
    used, numbers = np.unique(np.concatenate([outcomes.label[own], outcomes.gt_label[own_gt]]), return_inverse=True)
    return {
        "images": entries,
        "labels": [outcomes.names[i] for i in used],
        "gt": {
            "label": _encoded(numbers[len(own) :], "<u4"),
            "found": _encoded(outcomes.found[own_gt], "<f8"),
            "size": _encoded(_sizes(gt_boxes), "<u1"),
            "place": _encoded(np.array(gt_places), "<f8"),
        },
        "predictions": {
            "label": _encoded(numbers[: len(own)], "<u4"),
            "score": _encoded(outcomes.score[own], "<f8"),
            "lost": _encoded(outcomes.lost[own], "<f8"),
            "unmatched": _encoded(outcomes.unmatched[own], "<u1"),
            "size": _encoded(_sizes(boxes), "<u1"),
            "place": _encoded(np.array(places), "<f8"),
        },
        "missed": {
            "gt": _encoded(gt_place_of[missed[is_own]], "<u4"),
            "cause": _encoded(missed_kind[is_own], "<u1"),
            "score": _encoded(begin[is_own], "<f8"),
        },
        "confusable": {
            "prediction": _encoded(place_of[outcomes.confusable[pairs]], "<u4"),
            "gt": _encoded(gt_place_of[outcomes.confusable_gt[pairs]], "<u4"),
        },
    }


def _positions_in(chosen: np.ndarray, count: int) -> np.ndarray:
    """(count,) the position in `chosen` of each of 0 … count − 1, −1 where it is not chosen."""
    positions = np.full(count, -1)
    positions[chosen] = np.arange(len(chosen))
    return positions


def _sizes(places: list[list[float]]) -> np.ndarray:
    """(N,) position in COCO_SIZES of each box, as in `size_scores`; points have no size and get 0."""
    if places and len(places[0]) == 2:
        return np.zeros(len(places), dtype=np.int64)
    size: np.ndarray = np.digitize(box_area(places), COCO_SIZE_LIMITS)
    return size


def _longest_text(texts: list[str]) -> int:
    """The length to which texts are cut, so that together they take at most TEXT_BYTES."""
    left = TEXT_BYTES
    sizes = sorted(len(json.dumps(text)) for text in texts)
    for done, size in enumerate(sizes):
        share = left // (len(sizes) - done)
        if size > share:  # this text and all longer ones are cut
            return share // max(1, round(size / max(1, len(max(texts, key=len)))))
        left -= size
    return max(sizes, default=0)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text)} characters; predictions.jsonl has all of them)"


def _encoded(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
