"""Box arithmetic against torchvision's, and the greedy matching against its definition."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert
from torchvision.ops import box_iou as torchvision_iou

from boxtune.data.boxes import (
    COCO_SIZE_LIMITS,
    COCO_SIZES,
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xywh_to_xyxy,
    box_xyxy_to_cxcywh,
    box_xyxy_to_xywh,
    box_yxyx_to_xyxy,
    match_greedy,
)


def random_boxes(count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 50, (count, 2))
    return np.concatenate([corner, corner + draw.uniform(0.1, 50, (count, 2))], axis=1)


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (0, 3), (3, 0), (0, 0)])
def test_iou_is_torchvisions(rows, columns):
    a, b = random_boxes(rows, 0), random_boxes(columns, 1)
    want = torchvision_iou(torch.from_numpy(a).reshape(-1, 4), torch.from_numpy(b).reshape(-1, 4)).numpy()
    assert box_iou(a, b).shape == (rows, columns)
    np.testing.assert_allclose(box_iou(a, b), want, atol=1e-12)  # both in float64


def test_boxes_without_area_overlap_nothing():
    assert box_iou([[1, 1, 1, 5]], [[1, 1, 1, 5], [0, 0, 9, 9]]).tolist() == [[0, 0]]


def test_conversions_are_torchvisions():
    boxes = random_boxes(9, 2)
    for name, to_xyxy in (("xywh", box_xywh_to_xyxy), ("cxcywh", box_cxcywh_to_xyxy)):
        converted = box_convert(torch.from_numpy(boxes), "xyxy", name).numpy()
        np.testing.assert_allclose(to_xyxy(converted), boxes, atol=1e-12)
    for name, from_xyxy in (("xywh", box_xyxy_to_xywh), ("cxcywh", box_xyxy_to_cxcywh)):
        converted = box_convert(torch.from_numpy(boxes), "xyxy", name).numpy()
        np.testing.assert_allclose(from_xyxy(boxes), converted, atol=1e-12)
    assert box_yxyx_to_xyxy([[1, 2, 3, 4]]).tolist() == [[2, 1, 4, 3]]
    assert box_area([[1, 2, 3, 5]]).tolist() == [6]
    for convert in (box_xywh_to_xyxy, box_cxcywh_to_xyxy, box_yxyx_to_xyxy, box_xyxy_to_xywh, box_xyxy_to_cxcywh):
        assert convert([]).shape == (0, 4)


def test_sizes_are_those_of_coco():
    assert dict(zip(COCO_SIZES[1:], COCO_SIZE_LIMITS, strict=True)) == {"medium": 1024, "large": 9216}


def test_greedy_matching_takes_the_best_pair_first():
    similarity = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert match_greedy(similarity) == [(0, 0), (1, 1)]
    assert match_greedy(similarity, threshold=0.5) == [(0, 0)]
    assert match_greedy(np.array([[0.5, 0.5], [0.5, 0.5]]), 0.5) == [(0, 0), (1, 1)]
    assert match_greedy(np.zeros((2, 2))) == []
    assert match_greedy(np.zeros((0, 3))) == []


def test_greedy_matching_is_one_to_one_and_leaves_no_pair_above_the_threshold():
    draw = np.random.default_rng(3)
    for _ in range(50):
        similarity = draw.uniform(0, 1, draw.integers(0, 8, 2))
        pairs = match_greedy(similarity, 0.4)
        rows, columns = {r for r, _ in pairs}, {c for _, c in pairs}
        assert len(rows) == len(columns) == len(pairs)
        free = [similarity[r, c] for r in range(len(similarity)) for c in range(similarity.shape[1])
                if r not in rows and c not in columns]  # fmt: skip
        assert all(value < 0.4 for value in free)
        values = [similarity[pair] for pair in pairs]
        assert values == sorted(values, reverse=True)
