"""Reading predictions.jsonl: the order of the result, what the reader rejects, and reading the text again."""

import math

import pytest

from boxtune.answers.decoding import Decoding
from boxtune.answers.parts import merge_parts
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction
from boxtune.answers.selection import keep_objects
from boxtune.common.errors import UserError
from boxtune.data.questions import question, turns_for
from boxtune.metrics.scoring import score
from tests.helpers.predictions import CAT, cat_prediction, cat_record, write_lines


def problems_of(path, records, **kwargs):
    """The problems of the UserError, which must name the file."""
    with pytest.raises(UserError) as error:
        read_predictions(path, records, **kwargs)
    assert str(path) in str(error.value)
    return error.value.problems


def test_predictions_come_in_the_order_of_the_records(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", *map(cat_prediction, "cab"))
    predictions, missing = read_predictions(path, [cat_record(name) for name in "abc"])
    assert [prediction["id"] for prediction in predictions] == ["a", "b", "c"]
    assert missing == []


def test_foreign_duplicate_and_missing_ids_are_listed_together(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", *map(cat_prediction, ["a", "x", "a", "y"]))
    problems = problems_of(path, [cat_record(name) for name in "abc"])
    assert len(problems) == 5
    for found, expected in zip(
        problems, ["line 2: id 'x'", "line 3: duplicate id 'a'", "line 4: id 'y'", "b:", "c:"], strict=True
    ):
        assert found.startswith(expected)
    assert "--allow-missing" in problems[-1]
    assert len(problems_of(path, [cat_record(name) for name in "abc"], allow_missing=True)) == 3


def test_allowed_missing_images_count_as_empty_answers(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", cat_prediction("b"))
    records = [cat_record(name) for name in "abc"]
    predictions, missing = read_predictions(path, records, allow_missing=True)
    assert missing == ["a", "c"]
    metrics = score(records, predictions, ["cat"])
    assert metrics["parse"] == {"images": 3, "clean": 1, "problems": {"missing": 2}}
    assert (metrics["matching"]["tp"], metrics["matching"]["fn"]) == (1, 2)


def test_missing_click_answers_are_empty_lists_of_points(tmp_path):
    click = make_prediction(cat_record("b"), "qwen3_vl_click", (320, 320), "<click>300,150</click> cat", 0.1)
    records = [cat_record("a"), cat_record("b")]
    predictions, _ = read_predictions(write_lines(tmp_path / "p.jsonl", click), records, allow_missing=True)
    assert predictions[0]["objects"] == {"point": [], "category": [], "score": []}
    assert score(records, predictions, ["cat"])["points"]["tp"] == 1


def with_objects(**changes):
    return {"bbox": [[1, 2, 3, 4]], "category": ["cat"], "score": [1.0]} | changes


@pytest.mark.parametrize(
    "line, expected",
    [
        ('{"id": "a", "im', "not JSON"),
        ("[1, 2]", "must be a JSON object, got list"),
        ('"a"', "must be a JSON object, got str"),
        ({"id": "a", "objects": {}}, "'a' lacks the key(s) image, width, height"),
        ({"fingerprint": "0"}, "unfinished run"),
        (cat_prediction(seconds=math.nan), "seconds nan must be a number, or null"),
        (cat_prediction(id=["a"]), "id ['a'] is not in this split"),
        (cat_prediction(width=641), "made for 641 × 480, but the image has 640 × 480"),
        (cat_prediction(problems="none"), "problems 'none' must be a list"),
        (cat_prediction() | {"text": None}, "text None must be a string"),
        (cat_prediction(objects=[]), "objects must hold the lists"),
        (cat_prediction(objects=with_objects(score=None)), "objects must hold the lists"),
        (cat_prediction(objects=with_objects(point=[[1, 2]])), "objects must hold the lists"),
        (cat_prediction(objects=with_objects(score=[])), "differ in length: {'bbox': 1, 'category': 1, 'score': 0}"),
        (cat_prediction(objects=with_objects(category=[7])), "category 7 is not a string"),
        (cat_prediction(objects=with_objects(score=[float("nan")])), "score nan is not a number from 0 to 1"),
        (
            cat_prediction(objects=with_objects(score=[87])),
            "score 87 is not a number from 0 to 1: scores lie in 0…1; divide by 100",
        ),
        (
            cat_prediction(objects=with_objects(score=[1.01])),
            "score 1.01 is not a number from 0 to 1: scores lie in 0…1; di",
        ),
        (
            cat_prediction(objects=with_objects(score=[100.5])),
            "score 100.5 is not a number from 0 to 1: scores lie in 0…1; sc",
        ),
        (
            cat_prediction(objects=with_objects(score=[-0.5])),
            "score -0.5 is not a number from 0 to 1: scores lie in 0…1; sc",
        ),
        (
            cat_prediction(objects=with_objects(score=[None])),
            "score None is not a number from 0 to 1; use 1.0 if there is",
        ),
        (cat_prediction(objects=with_objects(score=[True])), "score True is not a number from 0 to 1"),
        (cat_prediction(objects=with_objects(score_label=[2])), "score_label 2 is not a number from 0 to 1"),
        (cat_prediction(objects=with_objects(score_label=[])), "'score': 1, 'score_label': 0}"),
        (cat_prediction(objects=with_objects(score_label="high")), "score_label 'high' must be a list"),
        (cat_prediction(objects=with_objects(bbox=[[1, 2, 3]])), "bbox [1, 2, 3] is not [x0, y0, x1, y1]"),
        (cat_prediction(objects=with_objects(bbox=[[3, 2, 3, 4]])), "bbox [3, 2, 3, 4] is not [x0, y0, x1, y1]"),
        (cat_prediction(objects=with_objects(bbox=[[1, 5, 3, 4]])), "bbox [1, 5, 3, 4] is not"),
        (cat_prediction(objects=with_objects(bbox=[[1, 2, "3", 4]])), "bbox [1, 2, '3', 4] is not"),
        (cat_prediction(objects=with_objects(bbox=[[1, 2, float("inf"), 4]])), "bbox [1, 2, inf, 4] is not"),
        (cat_prediction(objects=with_objects(bbox=[[1, 2, 10**400, 4]])), "is not [x0, y0, x1, y1]"),
        (
            cat_prediction(objects={"point": [[1, 2, 3]], "category": ["cat"], "score": [1]}),
            "point [1, 2, 3] is not [x, y]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_named_with_its_number_and_value(tmp_path, line, expected):
    path = write_lines(tmp_path / "p.jsonl", cat_prediction("b"), line)
    (problem,) = problems_of(path, [cat_record("a"), cat_record("b")], allow_missing=True)
    assert problem.startswith("line 2: ")
    assert expected in problem


def test_all_problems_are_collected(tmp_path):
    bad = cat_prediction(objects=with_objects(bbox=[[3, 2, 1, 4]], score=[2]), width=1)
    problems = problems_of(write_lines(tmp_path / "p.jsonl", "{", bad), [cat_record("a"), cat_record("b")])
    assert len(problems) == 5  # corrupt line, size, box, score, missing b


def test_thousands_of_bad_lines_give_twenty_examples_and_counts(tmp_path):
    """33,000 lines are no JSON, 500 have percentages as scores."""
    records = [cat_record(f"image {i}: x") for i in range(501)]
    percent = [cat_prediction(f"image {i}: x", objects=with_objects(score=[i % 99 + 1.5])) for i in range(500)]
    path = write_lines(tmp_path / "p.jsonl", *["\x1b\x00z"] * 33_000, *percent)
    with pytest.raises(UserError) as error:
        read_predictions(path, records)
    lines = str(error.value).splitlines()
    assert len(error.value.problems) == 33_501 and len(lines) == 1 + 20 + 1 + 3
    assert lines[0] == f"{path}: 33501 problem(s) in the predictions for 501 images:"
    assert (
        lines[19]
        == "  - line 33001: image 0: x: score 1.5 is not a number from 0 to 1: scores lie in 0…1; divide by 100"
    )
    assert lines[20] == "  - image 500: x: no prediction; predict it, or use --allow-missing"
    assert lines[21:] == [
        "  … and 33481 more. All 33501 by kind:",
        "    33000 × not JSON (Expecting value: line 1 column 1 (char 0))",
        "      500 × score … is not a number from 0 to 1: scores lie in 0…1; divide by 100",
        "        1 × no prediction; predict it, or use --allow-missing",
    ]


def test_boxes_and_points_cannot_be_mixed(tmp_path):
    click = make_prediction(cat_record("b"), "qwen3_vl_click", (320, 320), "None", 0.1)
    with pytest.raises(UserError, match="points and others boxes"):
        read_predictions(write_lines(tmp_path / "p.jsonl", cat_prediction(), click), [cat_record("a"), cat_record("b")])


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist.*evaluate\.py"):
        read_predictions(tmp_path / "none.jsonl", [])


# ---- reading the text again --------------------------------------------------------------------------------------------


def test_reparse_reads_the_text_and_not_the_objects(tmp_path):
    line = cat_prediction(text=CAT[:-1], objects={"broken": 1}, problems=["old"])
    path = write_lines(tmp_path / "p.jsonl", line)
    problems_of(path, [cat_record()])
    ((prediction,), _) = read_predictions(path, [cat_record()], reparse=True)
    assert prediction["objects"] == {"bbox": [[128.0, 48.0, 256.0, 96.0]], "category": ["cat"], "score": [1.0]}
    assert prediction["problems"] == ["truncated"]
    assert prediction["seconds"] == 0.5


@pytest.mark.parametrize("problems", [["truncated"], ["looped"], ["truncated", "looped"]])
def test_reparse_keeps_what_ended_a_response(tmp_path, problems):
    """Even if the text looks complete. A truncated text is recognized as such, too."""
    text = CAT[:-1] if len(problems) > 1 else CAT
    path = write_lines(tmp_path / "p.jsonl", cat_prediction(text=text, problems=problems))
    ((prediction,), _) = read_predictions(path, [cat_record()], reparse=True)
    assert prediction["problems"] == problems


def test_reparse_keeps_that_a_response_began_in_a_thought(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", cat_prediction(text=CAT, problems=["thinking", "truncated", "unparsable"]))
    ((prediction,), _) = read_predictions(path, [cat_record()], reparse=True)
    assert (prediction["objects"]["category"], prediction["problems"]) == ([], ["thinking", "truncated", "unparsable"])


@pytest.mark.parametrize("irrelevant", [True, False])
def test_reparse_keeps_the_answer_for_irrelevant_images(tmp_path, irrelevant):
    """Only where the line says that its text is this answer. Otherwise the text is unreadable."""
    line = cat_prediction(text="no such photo", problems=[]) | ({"irrelevant": True} if irrelevant else {})
    path = write_lines(tmp_path / "p.jsonl", line)
    ((prediction,), _) = read_predictions(path, [cat_record()], reparse=True)
    assert prediction["problems"] == ([] if irrelevant else ["unparsable"])
    assert prediction.get("irrelevant", False) == irrelevant


def test_reparse_reads_by_the_lines_codec(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", cat_prediction(codec="qwen3_vl"))
    ((prediction,), _) = read_predictions(path, [cat_record()], reparse=True)
    assert prediction["objects"]["bbox"] == [[35.84, 13.44, 71.68, 26.88]]  # thousandths instead of input pixels


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"codec": "yolo"}, "unknown codec 'yolo'"),
        ({"codec": ["qwen3_vl"]}, "unknown codec ['qwen3_vl']"),
        ({"input_size": [280]}, "input_size [280] must be"),
        ({"input_size": [280, 0]}, "input_size [280, 0] must be"),
        ({"input_size": None}, "input_size None must be"),
    ],
)
def test_reparse_needs_codec_and_input_size(tmp_path, changes, expected):
    path = write_lines(tmp_path / "p.jsonl", cat_prediction(**changes))
    assert len(read_predictions(path, [cat_record()])[0]) == 1
    (problem,) = problems_of(path, [cat_record()], reparse=True)
    assert expected in problem


# ---- lines of several questions ------------------------------------------------------------------------------------------

DOGS = '[{"bbox_2d": [0, 0, 28, 28], "label": "dog"}, {"bbox_2d": [0, 0, 28, 21], "label": "dog"}]'
ASKED = cat_record() | {"messages": turns_for(["cat", "dog"])}


def parted_line(texts=(CAT, DOGS), settings=None, **part):
    """A line of one question about cats and one about dogs. Scores: the cat 0.5, the dogs 0.9 and 0.2."""
    names = ("cat", "dog")
    parts = [
        {"question": question([name]), "tile": None, "input_size": [280, 280], "text": text} | part
        for name, text in zip(names, texts, strict=True)
    ]
    answers = [cat_prediction(text=text) for text in texts]
    answers[0]["objects"]["score"], answers[1]["objects"]["score"] = [0.5], [0.9, 0.2]
    return keep_objects(merge_parts(ASKED, parts, answers), settings or Decoding())


@pytest.mark.parametrize(
    "settings", [Decoding(), Decoding(suppress_iou=0.5), Decoding(suppress_iou=0.5, score_threshold=0.6)]
)
def test_reparse_reads_parts_and_gives_the_same_line(tmp_path, settings):
    """Scores are kept, and objects that a decode setting dropped stay dropped."""
    line = parted_line(settings=settings)
    path = write_lines(tmp_path / "p.jsonl", line)
    for reparse in (True, False):
        ((prediction,), _) = read_predictions(path, [ASKED], reparse=reparse, classes=["cat", "dog"])
        assert prediction == line


def test_reparse_reads_each_part_for_the_class_that_it_was_asked_for(tmp_path):
    line = parted_line() | {"objects": {}, "problems": []}
    for part, text in zip(
        line["parts"], (CAT.replace(', "label": "cat"', ""), DOGS.replace("dog", "DOG")), strict=True
    ):
        part["text"] = text
    path = write_lines(tmp_path / "p.jsonl", line)
    ((prediction,), _) = read_predictions(path, [ASKED], reparse=True, classes=["cat", "dog"])
    assert prediction["objects"]["category"] == ["cat", "dog", "dog"] and prediction["objects"]["score"] == [1.0] * 3
    assert prediction["problems"] == ["key_order", "no_label", "label_case", "label_case"]


@pytest.mark.parametrize(
    ("part", "problems"), [({"cut": "looped"}, ["looped"] * 2), ({"irrelevant": True, "text": "no such photo"}, [])]
)
def test_reparse_keeps_what_a_part_says_about_its_text(tmp_path, part, problems):
    path = write_lines(tmp_path / "p.jsonl", parted_line(**part))
    ((prediction,), _) = read_predictions(path, [ASKED], reparse=True, classes=["cat", "dog"])
    assert prediction["problems"] == problems


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], "parts [] must be a list with one entry per question"),
        ("none", "parts 'none' must be a list"),
        ([{"question": "q", "tile": None, "text": "[]"}], "must be an object with question, tile, input_size, text"),
        ([{"question": "q", "tile": None, "input_size": [28, 28], "text": None}], "question and text of part"),
        ([{"question": "q", "tile": None, "input_size": [28, 28], "text": "[]", "cut": 5}], "cut 5 must be looped or"),
    ],
)
def test_unusable_parts_are_named(tmp_path, parts, expected):
    path = write_lines(tmp_path / "p.jsonl", parted_line() | {"parts": parts})
    for reparse in (True, False):
        (problem,) = problems_of(path, [ASKED], reparse=reparse)
        assert expected in problem


def test_parts_that_cannot_be_read_again_can_be_scored(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", parted_line(input_size=[28], tile=[0, 0, 10, 999]))
    assert len(read_predictions(path, [ASKED])[0]) == 1
    problems = problems_of(path, [ASKED], reparse=True)
    assert len(problems) == 4 and "input_size [28] must be" in problems[0] and "tile [0, 0, 10, 999] is" in problems[1]
    lacking = {key: value for key, value in parted_line().items() if key != "codec"}
    assert "lacks the key(s) codec" in problems_of(write_lines(tmp_path / "q.jsonl", lacking), [ASKED])[0]
