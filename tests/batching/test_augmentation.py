"""Augmented images: boxes stay on their objects under every operation."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from boxtune.batching.augmentation import OPERATIONS, augment
from boxtune.data.boxes import box_area
from boxtune.data.record_checks import record_problems
from boxtune.data.records import MIN_VISIBLE
from tests.helpers.records import make_record

GROUND = (128, 128, 128)
# Far from the background and from each other, so that a pixel mixed by resampling can still be assigned to one of them.
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]
GEOMETRY = ["crop", "flip", "resize"]


@st.composite
def painted(draw) -> tuple[dict, Image.Image]:
    """A record and its image: solid boxes, each of one color and in its own cell, so that none hides another."""
    width, height = draw(st.integers(90, 240)), draw(st.integers(60, 180))
    pixels = np.full((height, width, 3), GROUND, dtype=np.uint8)
    objects = []
    for i in range(draw(st.integers(0, len(COLORS)))):
        cell_x, cell_y = width * (i % 3) // 3, height * (i // 3) // 2
        box_width, box_height = draw(st.integers(6, width // 3)), draw(st.integers(6, height // 2))
        x = cell_x + draw(st.integers(0, width // 3 - box_width))
        y = cell_y + draw(st.integers(0, height // 2 - box_height))
        pixels[y : y + box_height, x : x + box_width] = COLORS[i]
        objects.append(([float(v) for v in (x, y, x + box_width, y + box_height)], f"color {i}"))
    record = make_record("a", "a.png", width, height, objects)
    record["objects"]["number"] = list(range(len(objects)))
    return record, Image.fromarray(pixels)


def extents(image: Image.Image) -> list[list[int] | None]:
    """For each of COLORS, the box (xyxy) of the pixels that are nearest to it, or None if there are none."""
    pixels = np.asarray(image, dtype=np.int16)
    nearest = np.stack([np.abs(pixels - color).sum(2) for color in np.int16([GROUND, *COLORS])]).argmin(0)
    found = [np.nonzero(nearest == i + 1) for i in range(len(COLORS))]
    return [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None for ys, xs in found]


@settings(deadline=None)
@given(painted(), st.sets(st.sampled_from(GEOMETRY), min_size=1), st.integers(0, 10**6))
def test_boxes_stay_on_the_painted_objects(example, operations, seed):
    record, image = example
    varied, augmented = augment(record, image, list(operations), 60_000, random.Random(seed))
    assert augmented.mode == "RGB"
    assert augmented.size == (varied["width"], varied["height"])
    assert record_problems(varied) == []
    objects = varied["objects"]
    numbers = objects["number"]
    assert objects["category"] == [f"color {i}" for i in numbers]
    found = extents(augmented)
    for i in range(len(record["objects"]["bbox"])):
        seen = found[i]
        if i in numbers:
            box = objects["bbox"][numbers.index(i)]
            if min(box[2] - box[0], box[3] - box[1]) > 2:  # a thinner remainder may not contain a whole pixel
                assert np.allclose(seen, box, atol=1.5), (seen, box)
        else:
            assert seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) <= 2


def test_a_barely_visible_remainder_is_ignored():
    """Ten columns, each with one object that a crop may cut. What is left of an object decides what becomes of it."""
    boxes = [[40 * i + 2.5, 10.25, 40 * i + 38.5, 90.75] for i in range(10)]
    record = make_record("a", "a.png", 400, 100, [(box, "bar") for box in boxes])
    record["objects"]["number"] = list(range(10))
    record["objects"]["ignore"][4] = True
    image, cut, gone = Image.new("RGB", (400, 100)), set(), 0
    for seed in range(60):
        varied, _ = augment(record, image, ["crop"], 10**6, random.Random(seed))
        objects = varied["objects"]
        gone += 10 - len(objects["number"])
        for box, ignored, i in zip(objects["bbox"], objects["ignore"], objects["number"], strict=True):
            share = float(box_area([box])[0] / box_area([boxes[i]])[0])
            assert ignored == (i == 4 or share < MIN_VISIBLE)
            cut.add(ignored and i != 4)
    assert cut == {True, False}
    assert gone


def test_boxes_keep_their_fractions():
    record = make_record("a", "a.png", 300, 200, [([10.3, 20.7, 110.9, 90.1], "cat")])
    varied, augmented = augment(record, Image.new("RGB", (300, 200)), ["resize"], 10**6, random.Random(0))
    assert augmented.size != (300, 200)
    scale = [augmented.width / 300, augmented.height / 200] * 2
    assert varied["objects"]["bbox"][0] == pytest.approx(np.multiply([10.3, 20.7, 110.9, 90.1], scale), rel=1e-6)


def test_color_blur_and_jpeg_do_not_move_boxes():
    record = make_record("a", "a.png", 60, 40, [([10.3, 5, 30, 30], "cat")])
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for operation in ("color", "blur", "jpeg"):
        results = [
            augment(record, Image.fromarray(pixels), [operation], 10**6, random.Random(seed)) for seed in range(9)
        ]
        assert all(varied == record for varied, _ in results)
        assert any(np.any(np.asarray(augmented) != pixels) for _, augmented in results), operation


@pytest.mark.parametrize("size", [(1, 1), (1, 150), (600, 3), (5000, 40), (2, 2)])
def test_extreme_shapes_stay_within_the_aspect_ratio_limit(size):
    record = make_record("a", "a.png", *size, [([0, 0, *size], "cat")])
    for seed in range(15):
        varied, augmented = augment(record, Image.new("RGB", size), list(OPERATIONS), 20_000, random.Random(seed))
        assert record_problems(varied) == []
        assert augmented.size == (varied["width"], varied["height"])


def test_large_images_shrink_to_the_budget_before_they_are_blurred():
    record = make_record("a", "a.png", 2000, 1500, [([0, 0, 1000, 750], "cat")])
    varied, augmented = augment(record, Image.new("RGB", (2000, 1500)), ["blur"], 50_000, random.Random(0))
    assert augmented.width * augmented.height == pytest.approx(50_000, rel=0.01)
    assert varied["objects"]["bbox"][0] == pytest.approx([0, 0, augmented.width / 2, augmented.height / 2])


def test_a_resized_image_stays_within_the_budget():
    record = make_record("a", "a.png", 500, 400, [([0, 0, 250, 200], "cat")])
    sizes = [
        augment(record, Image.new("RGB", (500, 400)), ["resize"], 50_000, random.Random(seed))[1].size
        for seed in range(40)
    ]
    areas = [width * height for width, height in sizes]
    assert max(areas) == pytest.approx(50_000, rel=0.01)  # width and height are rounded
    assert min(areas) < 40_000 and len({*sizes}) > 10


def test_an_answer_in_plain_text_keeps_the_whole_image():
    """A crop could make "Two." wrong, a flip "left"."""
    record = make_record("a", "a.png", 300, 200, [([10, 20, 110, 90], "cat")])
    record["messages"] += [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "One."}]
    for seed in range(20):
        assert augment(record, Image.new("RGB", (300, 200)), ["crop", "flip"], 10**6, random.Random(seed))[0] == record
