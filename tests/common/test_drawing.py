"""Boxes, points and labels drawn on images, and the size of images in a page."""

import numpy as np
import pytest
from PIL import Image

from boxtune.common.drawing import draw_boxes, draw_points, thumbnail, to_data_uri


def red_pixels(image):
    return (np.asarray(image) == (255, 0, 0)).all(-1)


def test_draw_boxes_marks_the_edges_and_leaves_its_input_alone():
    image = Image.new("RGB", (200, 100), "white")
    drawn = draw_boxes(image, [[20, 30, 120, 80]], [""], "red")
    red = red_pixels(drawn)
    ys, xs = np.nonzero(red)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (20, 30, 120, 80)
    assert red[30, 20:121].all()
    assert red[30:81, 120].all()
    assert not red[40:70, 40:100].any()
    assert not red_pixels(image).any()


def test_dashed_boxes_have_gaps():
    image = Image.new("RGB", (200, 100), "white")
    edge = red_pixels(draw_boxes(image, [[20, 30, 180, 80]], [""], (255, 0, 0), dashed=True))[30, 20:180]
    assert 0.3 < edge.mean() < 0.8
    assert np.count_nonzero(np.diff(edge.astype(int))) >= 6


@pytest.mark.parametrize(
    "label", ["cat", "犬 ñandú", "x" * 5000, "two\nlines", "\ud83d"], ids=["a", "b", "c", "d", "e"]
)
def test_labels_stay_inside_the_image(label):
    image = Image.new("RGB", (300, 200), "white")
    for corner in ((0, 0), (290, 190), (150, 100)):
        box = [*corner, corner[0] + 9, corner[1] + 9]
        plain, labeled = draw_boxes(image, [box], [""], "red"), draw_boxes(image, [box], [label], "red")
        assert labeled.size == image.size
        assert red_pixels(labeled).sum() > red_pixels(plain).sum()


def test_draw_points_rings_each_point():
    image = Image.new("RGB", (200, 100), "white")
    red = red_pixels(draw_points(image, [[50, 60]], [""], "red"))
    ys, xs = np.nonzero(red)
    assert red[60, 50]
    assert abs(xs.mean() - 50) < 1
    assert abs(ys.mean() - 60) < 1
    assert 10 < np.ptp(xs) < 30


def test_thumbnails_shrink_but_never_grow():
    assert thumbnail(Image.new("RGB", (4000, 1000))).size == (480, 120)
    assert thumbnail(Image.new("RGB", (100, 50))).size == (100, 50)


def test_an_image_in_a_page_has_a_limited_size():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 480, 3), dtype=np.uint8))
    assert len(to_data_uri(noise)) < 80_000 + 30
    flat = to_data_uri(Image.new("RGB", (480, 480), "white"))
    assert flat.startswith("data:image/jpeg;base64,")
    assert len(flat) < 10_000
