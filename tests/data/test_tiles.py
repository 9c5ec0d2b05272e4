"""Tiles cover an image, overlap, and hold its objects."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from boxtune.data.images import FAITHFUL_ASPECT_RATIO
from boxtune.data.questions import turns_for
from boxtune.data.record_checks import record_problems
from boxtune.data.records import MIN_VISIBLE, in_order
from boxtune.data.tiles import OVERLAP, cut, cut_image, tile_grid, tile_of, training_views, views_of, whole_of
from tests.helpers.records import make_record

SIDES = st.integers(20, 900)


@given(SIDES, SIDES, st.integers(32, 400))
def test_tiles_cover_every_pixel_overlap_and_have_one_size_that_is_not_too_long(width, height, side):
    grid = tile_grid(width, height, side)
    if not grid:
        assert max(width, height) <= min(side, FAITHFUL_ASPECT_RATIO * min(width, height))
        return
    seen = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in grid:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        seen[y0:y1, x0:x1] = True
    assert seen.all()
    [(tile_width, tile_height)] = {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in grid}
    assert max(tile_width, tile_height) <= min(side, FAITHFUL_ASPECT_RATIO * min(tile_width, tile_height))
    for axis, tile in ((0, tile_width), (1, tile_height)):
        starts = sorted({box[axis] for box in grid})
        assert all(after - before <= tile - OVERLAP * tile for before, after in pairwise(starts))


@given(SIDES, SIDES, st.integers(32, 400), st.data())
def test_an_object_no_larger_than_the_overlap_lies_whole_in_a_tile(width, height, side, data):
    grid = tile_grid(width, height, side)
    if not grid:
        return
    tile_width, tile_height = grid[0][2], grid[0][3]
    w, h = int(OVERLAP * tile_width), int(OVERLAP * tile_height)
    x, y = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
    assert any(x0 <= x and y0 <= y and x + w <= x1 and y + h <= y1 for x0, y0, x1, y1 in grid)


def test_an_image_that_is_no_larger_than_a_tile_is_not_cut():
    record = make_record("a", "a.png", 300, 200, [([0, 0, 50, 50], "cat")])
    assert views_of(record, 300) == views_of(record, 0) == [record]
    assert [tile_of(view) for view in views_of(record, 299)] == [None, [0, 0, 299, 200], [1, 0, 300, 200]]


def test_an_image_that_is_too_long_is_seen_in_tiles_only():
    """300 × 100 is still faithful; 301 × 100 is cut although both sides are smaller than a tile."""
    sizes = ((300, 100), (301, 100), (100, 301))
    views = [views_of(make_record("a", "a.png", *size, []), 640) for size in sizes]
    assert [[tile_of(view) for view in found] for found in views] == [
        [None],
        [[0, 0, 300, 100], [1, 0, 301, 100]],
        [[0, 0, 100, 300], [0, 1, 100, 301]],
    ]


@given(SIDES, SIDES, st.integers(32, 400), st.integers(0, 1000))
def test_boxes_of_tiles_map_back_exactly_and_what_is_hardly_visible_is_ignored(width, height, side, seed):
    draw = np.random.default_rng(seed)
    x, y = draw.uniform(0, width - 12, 5), draw.uniform(0, height - 12, 5)
    w, h = draw.uniform(3, width - x), draw.uniform(3, height - y)
    boxes = np.stack([x, y, x + w, y + h], axis=1)
    record = make_record("a", "a.png", width, height, [(box, "cat") for box in boxes.tolist()])
    record["objects"]["number"] = list(range(5))
    record["objects"]["ignore"][0] = True
    for view in views_of(record, side):
        tile = tile_of(view)
        if tile is None:
            assert view is record
            continue
        assert record_problems({key: value for key, value in view.items() if key != "cut_from"}) == []
        assert (view["width"], view["height"]) == (tile[2] - tile[0], tile[3] - tile[1])
        assert whole_of(view) | {"objects": record["objects"]} == record
        corner = np.array(tile[:2] * 2)
        inside = boxes.clip(corner, np.array(tile[2:] * 2))
        sides = inside[:, 2:] - inside[:, :2]
        kept = np.flatnonzero(sides.min(axis=1) > 0)
        assert view["objects"]["number"] == kept.tolist()
        back = np.array(view["objects"]["bbox"]).reshape(-1, 4) + corner
        assert np.allclose(back, inside[kept], rtol=0, atol=1e-9)
        shares = sides.prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        assert view["objects"]["ignore"] == [bool(i == 0 or shares[i] < MIN_VISIBLE) for i in kept]


def test_a_tile_shows_its_part_of_the_image():
    pixels = np.arange(120 * 200 * 3, dtype=np.uint32).reshape(120, 200, 3).astype(np.uint8)
    image, record = Image.fromarray(pixels), make_record("a", "a.png", 200, 120, [])
    assert cut_image(image, record) is image
    shown = cut_image(image, cut(record, [40, 10, 104, 74]))
    assert np.array_equal(np.asarray(shown), pixels[10:74, 40:104])


# ---- training ------------------------------------------------------------------------------------------------------------


def test_training_has_about_as_many_tiles_without_an_object_as_with_one():
    """Nine tiles of 100 × 100. Of those without an object, as many stay as there are with one, and at least one."""
    corners = ([5, 5, 15, 15], [245, 5, 255, 15])

    def kinds(objects, name="a"):
        views = training_views(make_record(name, "a.png", 260, 260, objects), 100)
        assert tile_of(views[0]) is None
        return [len(view["objects"]["bbox"]) for view in views[1:]], [view["id"] for view in views]

    assert sorted(kinds([(box, "cat") for box in corners])[0]) == [0, 0, 1, 1]
    assert kinds([])[0] == [0]
    drawn = {str(kinds([], str(i))[1][1].partition(" ")[2]) for i in range(30)}
    assert len(drawn) > 4  # which one it is differs from image to image
    assert kinds([]) == kinds([])


def test_answers_in_plain_text_are_not_cut():
    record = make_record("a", "a.png", 260, 260, [([5, 5, 15, 15], "cat")])
    further = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "One."}]
    record["messages"] = [*turns_for(["cat"]), *further]
    assert training_views(record, 100) == [record]


def test_objects_of_a_tile_are_in_the_order_that_they_have_there():
    """The tall object starts above the tile, so in the tile both start at the same height."""
    record = make_record("a", "a.png", 200, 200, [([150, 10, 170, 190], "tall"), ([110, 100, 130, 120], "small")])
    tile = cut(record, [100, 100, 200, 200])
    assert in_order(tile, "raster")["objects"]["category"] == ["small", "tall"]
    assert in_order(record, "raster")["objects"]["category"] == ["tall", "small"]


@pytest.mark.parametrize("value", [{"tile": [0, 0, 1, 1]}, "T32"])
def test_a_dataset_cannot_use_the_key_of_tiles(value):
    record = make_record("a", "a.png", 200, 200, []) | {"cut_from": value}
    assert record_problems(record) == ["'a': the key cut_from exists in memory only; rename it"]
