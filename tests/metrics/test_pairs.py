"""Boxes in flat arrays give the same results as loops over images and rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxtune.data.boxes import box_iou, intersection, match_greedy
from boxtune.metrics import pairs
from boxtune.metrics.matching import match_images, same_label
from tests.helpers.scoring import random_data


def test_rows_choose_in_turn_counted_by_hand():
    """Row 0 prefers column 7 to column 8, row 1 accepts only column 7, row 2 prefers 8 to 7; the turns are 1, 0, 2."""
    wishes = {
        "rows": np.array([0, 0, 1, 2, 2]),
        "columns": np.array([7, 8, 7, 8, 7]),
        "ranks": np.array([1, 1, 0, 2, 2]),
    }
    # Row 1 takes column 7, row 0 takes column 8, and nothing is left for row 2.
    assert pairs.assign_in_turn(**wishes, is_shared=wishes["columns"] == 9).tolist() == [1, 2]
    # Column 7 may be taken any number of times, so row 0 gets its first choice and row 2 too.
    assert pairs.assign_in_turn(**wishes, is_shared=wishes["columns"] == 7).tolist() == [0, 2, 3]


@given(st.lists(st.lists(st.integers(0, 5), unique=True, max_size=6), max_size=8), st.randoms(use_true_random=False))
def test_a_row_gets_its_first_choice_that_no_earlier_row_took(wishes, random):
    order = random.sample(range(len(wishes)), len(wishes))
    shared_column, taken, expected = 5, set(), set()
    for row in order:
        free = [column for column in wishes[row] if column not in taken or column == shared_column]
        taken.update(free[:1])
        expected.update((row, column) for column in free[:1])
    rows = np.array([row for row, wanted in enumerate(wishes) for _ in wanted], dtype=np.int64)
    columns = np.array([column for wanted in wishes for column in wanted], dtype=np.int64)
    ranks = np.argsort(order)[rows].astype(np.int64)
    chosen = pairs.assign_in_turn(rows=rows, columns=columns, ranks=ranks, is_shared=columns == shared_column)
    assert {*zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True)} == expected


@pytest.mark.parametrize("chunk", [1, 50, pairs.CHUNK])
def test_overlapping_pairs_are_all_pairs_of_a_group_with_a_shared_area(chunk, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    for a, b in ((40, 30), (0, 5), (5, 0)):
        boxes_a, boxes_b = (np.tile(rng.uniform(0, 50, (n, 2)), 2) + np.array([0, 0, 20, 20]) for n in (a, b))
        groups_a, groups_b = rng.integers(0, 4, a), rng.integers(0, 4, b)
        expected = intersection(boxes_a, boxes_b) * (groups_a[:, None] == groups_b)
        found = pairs.overlapping_pairs(
            prediction_group=groups_a, prediction_boxes_xyxy=boxes_a, gt_group=groups_b, gt_boxes_xyxy=boxes_b
        )
        assert [found.prediction.tolist(), found.gt.tolist()] == [part.tolist() for part in np.nonzero(expected)]
        np.testing.assert_array_equal(found.shared_area, expected[found.prediction, found.gt])


def test_count_up_restarts_at_every_count():
    assert pairs.count_up(np.array([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_all_images_at_once_are_matched_like_each_image_alone(seed):
    records, predictions, _ = random_data(seed, crowd=0.3)
    for record, prediction, image in zip(records, predictions, match_images(records, predictions), strict=True):
        gt, predicted = record["objects"], prediction["objects"]
        counted = [j for j, ignored in enumerate(gt["ignore"]) if not ignored]
        is_same = same_label(predicted["category"], gt["category"])
        iou = (box_iou(predicted["bbox"], gt["bbox"]) * is_same)[:, counted]
        assert image.pairs == sorted((i, counted[j], iou[i, j]) for i, j in match_greedy(iou, 0.5))
        best = {j: iou[i, j] for i, j in match_greedy(iou)}
        assert image.ious == [best.get(j, 0.0) for j in range(len(counted))]
        everything = [*image.false_positives, *image.excused, *(i for i, *_ in image.pairs)]
        assert sorted(everything) == [*range(len(predicted["bbox"]))]
