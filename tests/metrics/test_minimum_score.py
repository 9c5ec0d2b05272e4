"""What each box is at every minimum score, against matching again without the boxes below it."""

import numpy as np
import pytest

from boxtune.metrics.error_types import error_types
from boxtune.metrics.matching import match_images
from boxtune.metrics.minimum_score import EXCUSED, IGNORED, UNMATCHED, outcomes
from boxtune.metrics.scoring import share
from tests.helpers.report_page import a_record, answer, kept

CLASSES = ["cat", "dog"]


def a_crowd(seed, images=12):
    """(records, predictions) of overlapping boxes of two classes, with equal scores, ignored boxes and unknown labels."""
    draw = np.random.default_rng(seed)

    def boxes(count):
        corners = draw.integers(0, 6, (count, 2)) * 20.0
        return np.hstack([corners, corners + draw.integers(4, 9, (count, 2)) * 20]).tolist()

    records, predictions = [], []
    for i in range(images):
        gt_count, count = draw.integers(0, 12), draw.integers(0, 25)
        ignore = (draw.random(gt_count) < 0.2).tolist()
        records.append(a_record(f"image {i}", boxes(gt_count), draw.choice(CLASSES, gt_count).tolist(), ignore=ignore))
        objects = {
            "bbox": boxes(count),
            "category": draw.choice(["cat", " dog", "cow"], count, p=[0.6, 0.3, 0.1]).tolist(),
            "score": (draw.integers(0, 11, count) / 10).tolist(),
        }
        predictions.append(answer(records[-1], []) | {"objects": objects})
    return records, predictions


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5])
def test_the_state_of_every_box_equals_matching_again(seed, iou_threshold):
    records, predictions = a_crowd(seed)
    matches = match_images(records, predictions, iou_threshold)
    split = share(records, predictions, CLASSES).split
    found = outcomes(records, predictions, matches, CLASSES, iou_threshold, split)
    for minimum in (0, 0.05, 0.3, 0.7, 1):
        above = list(kept(predictions, minimum))
        for n, match in enumerate(match_images(records, above, iou_threshold)):
            own = np.flatnonzero((found.image == n) & (found.score >= minimum))  # in the order of `above`
            is_lost = found.lost[own] >= minimum
            assert np.flatnonzero(~is_lost).tolist() == [i for i, *_ in match.pairs]
            kinds = {i: UNMATCHED[found.unmatched[own[i]]] for i in np.flatnonzero(is_lost).tolist()}
            types = error_types(records[n], above[n], match, CLASSES, iou_threshold)
            assert kinds == types | dict.fromkeys(match.excused, EXCUSED)
            gt = found.found[found.gt_image == n]
            assert np.flatnonzero((gt < minimum) & (gt != IGNORED)).tolist() == match.missed


def test_the_first_prediction_of_a_split_can_lose_its_match():
    record = a_record("one", [[30, 0, 130, 10]])
    boxes = [[41, 0, 141, 10], [25, 0, 125, 10]]
    prediction = answer(record, []) | {"objects": {"bbox": boxes, "category": ["cat"] * 2, "score": [0.9, 0.4]}}
    split = share([record], [prediction], CLASSES).split
    found = outcomes([record], [prediction], match_images([record], [prediction]), CLASSES, 0.5, split)
    assert (found.found.tolist(), found.lost.tolist()) == ([0.9], [0.4, -1])


def test_a_box_is_found_from_its_first_match_on_and_a_match_can_be_lost():
    """Q comes first and takes B. P overlaps B more; below P's score Q is left without a box."""
    record = a_record("one", [[30, 0, 130, 10]])
    boxes = [[25, 0, 125, 10], [41, 0, 141, 10]]
    prediction = answer(record, []) | {"objects": {"bbox": boxes, "category": ["cat"] * 2, "score": [0.4, 0.9]}}
    split = share([record], [prediction], CLASSES).split
    found = outcomes([record], [prediction], match_images([record], [prediction]), CLASSES, 0.5, split)
    assert found.found.tolist() == [0.9]
    assert found.lost.tolist() == [-1, 0.4]
    assert [UNMATCHED[kind] for kind in found.unmatched] == ["duplicate", "duplicate"]
