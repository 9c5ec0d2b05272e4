"""Boxes of one object in several tiles become one box; other objects stay as they are."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.parts import questions_of
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.responses import Response, read_responses
from boxtune.answers.tile_merging import merge_views
from boxtune.common.errors import UserError
from boxtune.data.questions import turns_for
from boxtune.data.tiles import tile_of
from boxtune.families import FAMILIES
from boxtune.metrics.scoring import score
from tests.helpers.predictions import write_lines

# Two tiles of 300 × 200 that share 60 columns: 240 to 300. Both are asked about after the whole image.
WIDTH, HEIGHT, SIDE = 540, 200, 300
WHOLE, LEFT, RIGHT = None, [0, 0, 300, 200], [240, 0, 540, 200]
RECORD = {
    "id": "a",
    "image": "a.jpg",
    "width": WIDTH,
    "height": HEIGHT,
    "objects": {"bbox": [], "category": [], "ignore": []},
    "messages": turns_for(["cat", "dog"]),
}
GROUNDING = Grounding("qwen2_5_vl", "", "", 1, 10**6, 64, "base", classes=["cat", "dog"], decoding=Decoding(tiles=SIDE))


def text_of(tile, found) -> str:
    """The response about a tile in which `found` boxes, in pixels of the image, were seen."""
    x, y = (tile or [0, 0])[:2]
    return json.dumps([{"bbox_2d": [b[0] - x, b[1] - y, b[2] - x, b[3] - y], "label": n} for b, n in found])


def verify_nothing(questions):
    raise AssertionError("the verifier is off")


def merged(whole=(), left=(), right=(), grounding=GROUNDING, verify=verify_nothing) -> dict:
    """The prediction from what was seen in the whole image and the two tiles. They are not resized."""
    questions = questions_of(RECORD, grounding.classes, grounding.decoding)
    assert [tile_of(question) for question in questions] == [WHOLE, LEFT, RIGHT]
    seen = zip(questions, (whole, left, right), strict=True)
    responses = [
        Response(text_of(tile_of(question), found), (question["height"], question["width"]), None, None)
        for question, found in seen
    ]
    return read_responses(questions, responses, grounding, False, verify)


def boxes(prediction, label="cat"):
    objects = prediction["objects"]
    return sorted(box for box, name in zip(objects["bbox"], objects["category"], strict=True) if name == label)


def test_an_object_that_all_views_show_is_one_with_the_box_of_the_tile_that_shows_most_around_it():
    """Of the three slightly different boxes, that in the left tile is 20 pixels from a border, that in the right one 15."""
    line = merged([([255, 50, 285, 90], "cat")], [([254, 50, 280, 90], "cat")], [([255, 52, 280, 92], "cat")])
    assert boxes(line) == [[254, 50, 280, 90]] and line["problems"] == ["merged", "merged"]
    line = merged([([255, 50, 285, 90], "cat")], [], [([250, 52, 280, 92], "cat")])
    assert boxes(line) == [[250, 52, 280, 92]]


def test_a_box_that_a_border_cuts_becomes_one_with_the_whole_box_of_another_view():
    cut, complete = [200, 50, 300, 90], [200, 50, 340, 90]
    assert boxes(merged([(complete, "cat")], [(cut, "cat")])) == [complete]  # of the whole image
    assert boxes(merged([], [([230, 50, 270, 90], "cat")], [([240, 50, 270, 90], "cat")])) == [[230, 50, 270, 90]]
    assert boxes(merged([(complete, "cat")], [(cut, "cat")], [([240, 50, 340, 90], "cat")])) == [complete]


def test_the_verifier_is_asked_about_each_box_in_the_tile_that_showed_it_and_the_best_score_stays():
    asked, log_odds = [], iter([-1.0, 2.0, 0.0])

    def verify(questions):
        asked.extend((tile_of(question), question["messages"][0]["content"]) for question in questions)
        return [next(log_odds) for _ in questions]

    box, verifying = [255, 50, 285, 90], replace(GROUNDING, decoding=Decoding(tiles=SIDE, verify=True))
    line = merged([(box, "cat")], [(box, "cat")], [(box, "cat")], verifying, verify)
    assert asked == [
        (WHOLE, "<image>Is the cat in the box [255, 50, 285, 90]?"),
        (LEFT, "<image>Is the cat in the box [255, 50, 285, 90]?"),
        (RIGHT, "<image>Is the cat in the box [15, 50, 45, 90]?"),
    ]
    assert boxes(line) == [box] and line["objects"]["score"] == [pytest.approx(0.880797)]


def test_an_object_that_is_cut_in_both_tiles_becomes_one_box_around_both_parts():
    line = merged([], [([100, 50, 299, 150], "cat")], [([241, 52, 500, 150], "cat")])
    assert boxes(line) == [[100, 50, 500, 150]] and line["problems"] == ["merged"]


def test_a_narrow_fragment_at_a_border_is_part_of_the_object_inside_which_it_lies():
    """The fragment shows only half of the object's height, so the two do not agree where both views see them."""
    complete = [150, 50, 252, 100]
    for fragment in ([240, 60, 249, 80], [240, 60, 254, 80]):  # inside it, and for the most part inside it
        line = merged([], [(complete, "cat")], [(fragment, "cat")])
        assert boxes(line) == [complete] and line["problems"] == ["merged"]
    inner = [250, 60, 259, 80]  # not at a border: an object of its own
    assert len(boxes(merged([], [([150, 50, 262, 100], "cat")], [(inner, "cat")]))) == 2


def test_neighbours_nested_objects_and_other_labels_stay_apart():
    neighbours = [([245, 50, 265, 90], "cat"), ([266, 50, 286, 90], "cat")]
    assert boxes(merged(neighbours, neighbours, neighbours)) == [box for box, _ in neighbours]
    nested = [([60, 20, 220, 180], "cat"), ([100, 60, 130, 90], "cat")]
    assert boxes(merged(nested[:1], nested[1:])) == boxes(merged(nested[1:], nested[:1])) == [box for box, _ in nested]
    line = merged([([100, 50, 140, 90], "cat")], [([100, 50, 140, 90], "dog")])
    assert len(boxes(line)) == len(boxes(line, "dog")) == 1 and line["problems"] == []
    apart = merged([], [([10, 50, 30, 90], "cat")], [([400, 50, 420, 90], "cat")])
    assert len(boxes(apart)) == 2


def test_two_boxes_of_one_view_stay_two_as_without_tiles():
    twice = [([100, 50, 140, 90], "cat")] * 2
    assert len(boxes(merged(twice))) == len(boxes(merged(twice, twice))) == 2
    assert len(boxes(merged(twice, twice[:1]))) == 2


def test_the_merged_object_has_the_scores_of_its_best_box():
    columns = {
        "bbox": [[100.0, 50.0, 140.0, 90.0], [101.0, 50.0, 140.0, 90.0]],
        "category": ["cat", "cat"],
        "score": [0.9, 0.4],
        "score_label": [0.2, 0.8],
    }
    whole = [0.0, 0.0, 540.0, 200.0]
    assert merge_views(columns, [whole, LEFT], whole) == {
        "bbox": [[101.0, 50.0, 140.0, 90.0]],
        "category": ["cat"],
        "score": [0.9],
        "score_label": [0.2],
    }


def test_a_response_whose_boxes_were_merged_is_clean():
    line = merged([([100, 50, 140, 90], "cat")], [([100, 50, 140, 90], "cat")])
    assert score([RECORD], [line], ["cat", "dog"])["parse"] == {"images": 1, "clean": 1, "problems": {"merged": 1}}


@st.composite
def scenes(draw):
    """Cats in the cells of a grid of 90 × 100 pixels, so that none touches another; some are as large as a tile's overlap."""
    cells = [(x, y) for y in (0, 100) for x in range(0, WIDTH, 90)]
    chosen = draw(st.lists(st.sampled_from(cells), unique=True))
    found = []
    for x, y in chosen:
        w, h = draw(st.integers(8, 80)), draw(st.integers(8, 90))
        left, top = x + draw(st.integers(0, 89 - w)), y + draw(st.integers(0, 99 - h))
        found.append([left, top, left + w, top + h])
    return sorted(found)


def shown(tile, found):
    """What a perfect model names in a view: every object of which at least 4 × 4 pixels are visible."""
    x0, y0, x1, y1 = tile or [0, 0, WIDTH, HEIGHT]
    clipped = [[max(b[0], x0), max(b[1], y0), min(b[2], x1), min(b[3], y1)] for b in found]
    return [(box, "cat") for box in clipped if box[2] - box[0] >= 4 and box[3] - box[1] >= 4]


@settings(max_examples=60)
@given(scenes(), st.booleans())
def test_perfect_responses_give_each_object_once(found, sees_whole):
    """With or without the objects in the response about the whole image."""
    line = merged(shown(WHOLE, found) if sees_whole else [], shown(LEFT, found), shown(RIGHT, found))
    assert len(boxes(line)) == len(found)
    for box, expected in zip(boxes(line), found, strict=True):
        assert box == pytest.approx(expected, abs=4)


# ---- questions, files ------------------------------------------------------------------------------------------------------


def test_each_tile_is_asked_for_each_class():
    both = Decoding(tiles=SIDE, ask="each")
    questions = questions_of(RECORD, ["cat", "dog"], both)
    asked = [(tile_of(question), question["messages"][0]["content"].split()[2]) for question in questions]
    assert asked == [(tile, name) for tile in (WHOLE, LEFT, RIGHT) for name in ("cat", "dog")]


def test_questions_with_an_answer_in_plain_text_are_asked_once():
    record = RECORD | {
        "messages": [{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": "2"}]
    }
    assert questions_of(record, ["cat"], Decoding(tiles=SIDE)) == [record]


SEEN = ([([255, 50, 285, 90], "cat"), ([20, 20, 60, 60], "dog")], [([256, 50, 285, 90], "cat")], [])


@pytest.mark.parametrize("kept", [2, 3])
def test_reparse_gives_the_line_again_with_its_scores(tmp_path, kept):
    """One of two equal dogs in the whole image is suppressed or not."""
    grounding = replace(GROUNDING, decoding=Decoding(tiles=SIDE, suppress_iou=1 if kept == 3 else 0.5))
    whole, left, right = SEEN
    line = merged([*whole, whole[1]], left, right, grounding)
    line["objects"]["score"] = [0.25, 0.375, 0.5][:kept]
    assert [part["tile"] for part in line["parts"]] == [WHOLE, LEFT, RIGHT]
    assert line["problems"] == ["merged"] + ["suppressed"] * (3 - kept)
    path = write_lines(tmp_path / "p.jsonl", line)
    for reparse in (True, False):
        ((prediction,), _) = read_predictions(path, [RECORD], reparse=reparse, classes=["cat", "dog"])
        assert prediction == line


def test_reparse_reads_a_tile_for_the_classes_that_were_asked_for(tmp_path):
    line = merged(*SEEN) | {"objects": {}, "problems": []}
    line["parts"][1]["text"] = line["parts"][1]["text"].replace("cat", "Cat")
    path = write_lines(tmp_path / "p.jsonl", line)
    ((prediction,), _) = read_predictions(path, [RECORD], reparse=True, classes=["cat", "dog"])
    assert prediction["problems"] == ["label_case", *merged(*SEEN)["problems"]]
    assert boxes(prediction) == boxes(merged(*SEEN))


@pytest.mark.parametrize(
    ("tile", "expected"),
    [
        ([0, 0, 10], "tile [0, 0, 10] is not [x0, y0, x1, y1] inside 540 × 200"),
        ([0, 0, 541, 100], "tile [0, 0, 541, 100] is not [x0, y0, x1, y1] inside 540 × 200"),
        ([-1, 0, 50, 100], "is not [x0, y0, x1, y1] inside"),
        ([0.5, 0, 50, 100], "tile [0.5, 0, 50, 100] must be in whole pixels"),
    ],
)
def test_tiles_that_cannot_be_read_again_are_named(tmp_path, tile, expected):
    line = merged(*SEEN)
    line["parts"][1]["tile"] = tile
    path = write_lines(tmp_path / "p.jsonl", line)
    assert read_predictions(path, [RECORD])[0]
    with pytest.raises(UserError) as error:
        read_predictions(path, [RECORD], reparse=True, classes=["cat", "dog"])
    [problem] = error.value.problems
    assert expected in problem


def test_points_are_not_asked_for_in_tiles(tmp_path):
    codec = "qwen2_5_vl_click"
    problems = Grounding(codec, "", "", 1, 10**6, 64, "base", decoding=Decoding(tiles=SIDE)).decoding_problems()
    assert problems == ["tiles: 300 needs boxes, but this checkpoint responds with points"]
    line = merged() | {"codec": codec}
    path = write_lines(tmp_path / "p.jsonl", line)
    with pytest.raises(UserError) as error:
        read_predictions(path, [RECORD], reparse=True)
    assert len(error.value.problems) == 2 and "points of several tiles cannot be merged" in error.value.problems[0]


def test_the_smallest_tile_is_one_image_token_of_every_family():
    assert {Decoding(tiles=max(f.factor for f in FAMILIES.values())).problems() == []} == {True}
    for value in (31, -640, 640.0, True, "640"):
        assert Decoding(tiles=value).problems() == [
            f"tiles: {value!r} must be a whole number of pixels, 32 or more, or 0 for no tiles"
        ]
