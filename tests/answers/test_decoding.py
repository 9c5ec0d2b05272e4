"""Decode settings: what they ask, how the responses of an image are merged, and which objects are kept."""

from dataclasses import replace

import pytest

from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.parts import merge_parts, questions_of
from boxtune.answers.predictions import KEYS_WITH_PARTS
from boxtune.answers.responses import Response, read_responses
from boxtune.answers.selection import keep_objects
from boxtune.common.errors import UserError
from boxtune.data.questions import first_question, turns_for
from boxtune.metrics.scoring import score
from tests.helpers.predictions import CAT, cat_prediction, cat_record

GROUNDING = Grounding("qwen2_5_vl", "", "", 1, 280**2, 64, "base", classes=["cat", "dog"])
EACH = replace(GROUNDING, decoding=Decoding(ask="each"))
DOGS = '[{"bbox_2d": [0, 0, 28, 28], "label": "dog"}, {"bbox_2d": [28, 28, 84, 84], "label": "Dog"}]'


# ---- in grounding.json ---------------------------------------------------------------------------------------------------


def test_settings_are_read_back_and_older_checkpoints_have_the_defaults(tmp_path):
    tuned = replace(GROUNDING, decoding=Decoding(1.05, 0.7, "each", 0.25))
    tuned.save(tmp_path)
    assert Grounding.load(tmp_path) == tuned
    text = (tmp_path / "grounding.json").read_text()
    start = text.index(',\n  "decoding"')
    (tmp_path / "grounding.json").write_text(text[:start] + "}")
    assert Grounding.load(tmp_path) == GROUNDING and GROUNDING.decoding == Decoding()


def test_all_unusable_settings_are_named(tmp_path):
    replace(GROUNDING, max_pixels=0, decoding=Decoding(0.9, float("nan"), "some", True)).save(tmp_path)
    with pytest.raises(UserError, match="has values that cannot be used") as error:
        Grounding.load(tmp_path)
    assert error.value.problems == [
        "max_pixels: 0 must be at least 1",
        "decoding.repetition_penalty: 0.9 must be a number from 1 to 2",
        "decoding.suppress_iou: nan must be a number from 0 to 1",
        "decoding.score_threshold: True must be a number from 0 to 1",
        "decoding.ask: 'some' must be one of all, each",
    ]
    replace(GROUNDING, codec="qwen3_vl_click", decoding=Decoding(suppress_iou=0.7)).save(tmp_path)
    with pytest.raises(UserError, match=r"decoding.suppress_iou: 0.7 needs boxes, but this checkpoint responds with p"):
        Grounding.load(tmp_path)


# ---- questions and their merged answers ----------------------------------------------------------------------------------


def test_a_question_about_all_classes_becomes_one_for_each():
    record = cat_record() | {"messages": turns_for(["cat", "dog"])}
    assert questions_of(record, ["cat", "dog"], Decoding()) == [record]
    asked = questions_of(record, ["cat", "dog"], Decoding(ask="each"))
    assert [first_question(question) for question in asked] == [
        "<image>Detect every cat in the image.",
        "<image>Detect every dog in the image.",
    ]
    assert all(question["id"] == "a" and question["objects"] == record["objects"] for question in asked)
    described = questions_of(record, ["cat", "dog"], Decoding(ask="each"), {"dog": "any breed"})
    assert [first_question(question) for question in described] == [
        "<image>Detect every cat in the image.",
        "<image>Detect every dog (any breed) in the image.",
    ]


@pytest.mark.parametrize(
    ("messages", "classes"),
    [
        (turns_for(["cat", "dog"], "cat"), ["cat", "dog"]),
        (turns_for(["cat"]), ["cat"]),
        ([{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": "Two."}], ["cat", "dog"]),
    ],
)
def test_other_questions_stay_as_they_are(messages, classes):
    record = cat_record() | {"messages": messages}
    assert questions_of(record, classes, Decoding(ask="each")) == [record]


def no_answers(questions):
    raise AssertionError("the verifier is off")


def responses_about(record, *texts, cut=None):
    questions = questions_of(record, ["cat", "dog"], Decoding(ask="each"))
    responses = [Response(text, (280, 280), None, cut if i == 0 else None, 0.25) for i, text in enumerate(texts)]
    return read_responses(questions, responses, EACH, starts_in_thought=False, verify=no_answers)


def test_a_line_of_several_questions_keeps_each_response_and_all_problems():
    line = responses_about(cat_record() | {"messages": turns_for(["cat", "dog"])}, CAT[:-1], DOGS, cut="looped")
    assert tuple(line) == KEYS_WITH_PARTS
    assert line["parts"] == [
        {"question": "<image>Detect every cat in the image.", "tile": None, "input_size": [280, 280]}
        | {"text": CAT[:-1], "cut": "looped"},
        {"question": "<image>Detect every dog in the image.", "tile": None, "input_size": [280, 280], "text": DOGS},
    ]
    assert line["objects"]["category"] == [
        "cat",
        "dog",
        "dog",
    ]  # each response is read for the class that it was asked for
    assert line["problems"] == ["truncated", "looped", "label_case"]
    assert line["seconds"] == 0.5


def whole(count):
    """Parts about the whole image."""
    return [{"question": "q", "tile": None, "input_size": [280, 280], "text": ""}] * count


def test_merged_objects_are_in_the_order_of_their_scores():
    def part(labels, scores, **columns):
        boxes = [[i, 0, i + 1, 1] for i in range(len(labels))]
        return cat_prediction(objects={"bbox": boxes, "category": labels, "score": scores, **columns})

    parts = [part(["a", "b"], [0.2, 0.9], score_label=[0.3, 0.4]), part(["c", "d"], [0.5, 0.2], score_label=[0.1, 0.2])]
    assert merge_parts(cat_record(), whole(2), parts)["objects"] == {
        "bbox": [[1, 0, 2, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 0, 2, 1]],
        "category": ["b", "c", "a", "d"],
        "score": [0.9, 0.5, 0.2, 0.2],
        "score_label": [0.4, 0.1, 0.3, 0.2],
    }
    without = part([], []), part(["c"], [1.0])
    assert set(merge_parts(cat_record(), whole(2), [parts[0], without[0]])["objects"]) == {
        "bbox",
        "category",
        "score",
        "score_label",
    }
    assert set(merge_parts(cat_record(), whole(2), [parts[0], without[1]])["objects"]) == {"bbox", "category", "score"}


# ---- which objects are kept ----------------------------------------------------------------------------------------------

BOXES = [[0, 0, 100, 100], [0, 0, 100, 80], [0, 0, 100, 80], [200, 0, 300, 100], [0, 0, 100, 100]]
LABELS, SCORES = ["cat", " cat", "dog", "cat", "cat"], [0.6, 0.9, 0.8, 0.1, 0.6]


def kept(**settings):
    objects = {"bbox": BOXES, "category": LABELS, "score": SCORES, "score_label": [1, 2, 3, 4, 5]}
    prediction = keep_objects(cat_prediction(objects=objects, problems=["float"]), Decoding(**settings))
    return prediction["objects"]["score_label"], prediction["problems"]


def test_of_boxes_with_one_label_that_overlap_the_one_with_the_highest_score_is_kept():
    assert kept() == kept(suppress_iou=1) == ([1, 2, 3, 4, 5], ["float"])
    assert kept(suppress_iou=0.79) == ([2, 3, 4], ["float", "suppressed", "suppressed"])
    assert kept(suppress_iou=0.81) == ([1, 2, 3, 4], ["float", "suppressed"])  # the first of equal boxes and scores
    assert kept(suppress_iou=0.8) == kept(suppress_iou=0.81)  # 0.8 is their IoU: not more


def test_a_suppressed_box_suppresses_no_other():
    """The middle one of three boxes in a row overlaps both others, which do not overlap each other that much."""
    row = [[0, 0, 100, 10], [20, 0, 120, 10], [40, 0, 140, 10]]
    objects = {"bbox": row, "category": ["cat"] * 3, "score": [0.9, 0.8, 0.7]}
    line = keep_objects(cat_prediction(objects=objects, problems=[]), Decoding(suppress_iou=0.5))
    assert line["objects"]["bbox"] == [row[0], row[2]]


def test_objects_below_the_threshold_are_dropped_and_counted():
    assert kept(score_threshold=0.6) == ([1, 2, 3, 5], ["float", "low_score"])
    assert kept(score_threshold=0.6, suppress_iou=0.5) == ([2, 3], ["float", "low_score", "suppressed", "suppressed"])
    points = {"point": [[1, 2], [3, 4]], "category": ["cat"] * 2, "score": [0.5, 0.4]}
    line = keep_objects(cat_prediction(objects=points), Decoding(suppress_iou=0.5, score_threshold=0.45))
    assert line["objects"]["point"] == [[1, 2]]


def test_a_response_whose_objects_were_dropped_by_a_setting_is_clean():
    lines = [cat_prediction(name) for name in "ab"]
    lines[0]["problems"] = ["low_score", "suppressed"]
    parse = score([cat_record("a"), cat_record("b")], lines, ["cat"])["parse"]
    assert parse == {"images": 2, "clean": 2, "problems": {"low_score": 1, "suppressed": 1}}
