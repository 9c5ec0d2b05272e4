"""Boxes, points and labels drawn on images, and the size of images in a page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from boxtune.common.drawing import (
    MAX_LABEL,
    QUALITIES,
    caption,
    draw_boxes,
    draw_points,
    draw_prediction,
    thumbnail,
    to_data_uri,
)


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


def test_a_page_gets_the_best_quality_that_fits():
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    sizes = []
    for quality in QUALITIES:
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=quality, optimize=True)
        sizes.append(file.tell())
    for limit, size in ((sizes[0], sizes[0]), (sizes[0] - 1, sizes[1]), (sizes[3], sizes[3]), (10, sizes[-1])):
        assert len(base64.b64decode(to_data_uri(noise, limit).partition(",")[2])) == size


def area_of(image: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the red pixels."""
    ys, xs = np.nonzero(red_pixels(image))
    return xs.min(), ys.min(), xs.max(), ys.max()


def test_lines_are_as_wide_as_the_image_is_large():
    for size, width in (((200, 100), 2), ((100, 2000), 5)):
        red = red_pixels(draw_boxes(Image.new("RGB", size, "white"), [[20, 30, 80, 80]], [""], "red"))
        assert red[50, 20:81].nonzero()[0].tolist() == [*range(width), *range(61 - width, 61)]


def test_a_label_is_above_its_corner_if_there_is_room():
    image = Image.new("RGB", (300, 200), "white")
    for corner in ((100, 100), (100, 0), (290, 195)):
        box = [*corner, corner[0] + 1, corner[1] + 1]
        left, top, right, bottom = area_of(draw_boxes(image, [box], ["label"], "red"))
        assert left >= 0 and right < 300 and top >= 0 and bottom <= 200
        assert right - left > 20 and bottom - top > 8
        if corner == (100, 100):
            assert left == 100 and top < 90 and bottom < 103, "the label ends where the box begins"
        if corner == (100, 0):
            assert (left, top) == (100, 0), "no room above"
        if corner == (290, 195):
            assert right == 299 and top < 190


@pytest.mark.parametrize(
    ("color", "text"),
    [("lime", "black"), ("cyan", "black"), ("red", "white"), ((255, 255, 0), "black"), ("navy", "white")],
)
def test_text_contrasts_with_its_background(color, text):
    drawn = np.asarray(draw_boxes(Image.new("RGB", (300, 200), "gray"), [[50, 50, 52, 52]], ["MMM"], color))
    other = {"black": (255, 255, 255), "white": (0, 0, 0)}[text]
    assert (drawn == ImageColor.getrgb(text)).all(-1).any() and not (drawn == other).all(-1).any()


def test_long_labels_are_cut_but_scores_are_not():
    assert caption("RBC", 0.926) == "RBC 0.93"
    assert caption("x" * 55, 1) == f"{'x' * 55} 1.00" and len(caption("x" * 55, 1)) == MAX_LABEL
    assert caption("x" * 56, 1) == f"{'x' * 54}… 1.00"


@pytest.mark.parametrize(
    ("places", "area"), [({"bbox": [[10, 15, 40, 45]]}, (20, 30, 80, 90)), ({"point": [[25, 30]]}, None)]
)
def test_a_prediction_is_scaled_to_its_image(places, area):
    objects = {**places, "category": [""], "score": [0.5]}
    image = Image.new("RGB", (400, 300), "white")
    red = red_pixels(draw_prediction(image, objects, 2.0))
    if area:
        left, top, right, bottom = area
        assert red[bottom, left : right + 1].all() and red[top : bottom + 1, right].all()
        assert not red[bottom + 1 :].any() and not red[:, right + 30 :].any()
    else:
        assert red[60, 50] and not red[30, 25]


def test_points_have_a_ring_of_four_and_a_dot_of_one_line_width():
    red = red_pixels(draw_points(Image.new("RGB", (200, 100), "white"), [[50, 60]], [""], "red"))
    assert red[60, 42:59].nonzero()[0].tolist() == [0, 1, 6, 7, 8, 9, 10, 15, 16]
