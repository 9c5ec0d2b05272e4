"""Boxes in flat arrays against the same thing done image by image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxtune.data.boxes import box_iou, intersection, match_greedy
from boxtune.metrics import pairs
from boxtune.metrics.matching import match_images, same_label
from tests.helpers.scoring import random_data


@given(st.lists(st.lists(st.integers(0, 5), unique=True, max_size=6), max_size=8), st.randoms(use_true_random=False))
def test_a_row_gets_its_first_choice_that_no_row_before_it_took(wishes, random):
    order = random.sample(range(len(wishes)), len(wishes))
    open_column, taken, expected = 5, set(), set()
    for row in order:
        free = [column for column in wishes[row] if column not in taken or column == open_column]
        taken.update(free[:1])
        expected.update((row, column) for column in free[:1])
    rows = np.array([row for row, wanted in enumerate(wishes) for _ in wanted], dtype=np.int64)
    columns = np.array([column for wanted in wishes for column in wanted], dtype=np.int64)
    made = pairs.assign(rows, columns, np.argsort(order)[rows].astype(np.int64), columns == open_column)
    assert {*zip(rows[made].tolist(), columns[made].tolist(), strict=True)} == expected


@pytest.mark.parametrize("chunk", [1, 50, pairs.CHUNK])
def test_overlaps_are_those_of_every_pair_of_a_group(chunk, monkeypatch):
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    for a, b in ((40, 30), (0, 5), (5, 0)):
        boxes_a, boxes_b = (np.tile(rng.uniform(0, 50, (n, 2)), 2) + np.array([0, 0, 20, 20]) for n in (a, b))
        groups_a, groups_b = rng.integers(0, 4, a), rng.integers(0, 4, b)
        expected = intersection(boxes_a, boxes_b) * (groups_a[:, None] == groups_b)
        rows, columns, shared = pairs.overlaps(groups_a, boxes_a, groups_b, boxes_b)
        assert [rows.tolist(), columns.tolist()] == [part.tolist() for part in np.nonzero(expected)]
        np.testing.assert_array_equal(shared, expected[rows, columns])


@pytest.mark.parametrize("seed", range(6))
def test_all_images_at_once_are_matched_as_each_alone(seed):
    records, predictions, _ = random_data(seed, crowd=0.3)
    for record, prediction, image in zip(records, predictions, match_images(records, predictions), strict=True):
        truth, answers = record["objects"], prediction["objects"]
        counted = [j for j, ignored in enumerate(truth["ignore"]) if not ignored]
        iou = (box_iou(answers["bbox"], truth["bbox"]) * same_label(answers["category"], truth["category"]))[:, counted]
        assert image.pairs == sorted((i, counted[j], iou[i, j]) for i, j in match_greedy(iou, 0.5))
        best = {j: iou[i, j] for i, j in match_greedy(iou)}
        assert image.ious == [best.get(j, 0.0) for j in range(len(counted))]
        assert sorted([*image.false, *image.excused, *(i for i, *_ in image.pairs)]) == [*range(len(answers["bbox"]))]
