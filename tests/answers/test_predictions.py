"""predictions.jsonl: what a line holds, what the reader refuses, and how an interrupted run goes on."""

import json
import math

import numpy as np
import pytest

from boxtune.answers.codecs import CODECS
from boxtune.answers.confidence import DEFAULT, SCORERS, TokenScores
from boxtune.answers.predictions import PredictionWriter, fingerprint, make_prediction, partial_of, read_predictions
from boxtune.common.errors import UserError
from boxtune.metrics.scoring import score

CAT = '[{"bbox_2d": [56, 28, 112, 56], "label": "cat"}]'


def a_record(name="a", width=640, height=480):
    objects = {"bbox": [[128, 48, 256, 96]], "category": ["cat"], "ignore": [False]}
    return {"id": name, "image": f"{name}.jpg", "width": width, "height": height, "objects": objects, "messages": []}


def a_prediction(name="a", text=CAT, **changes):
    return make_prediction(a_record(name), "qwen2_5_vl", (280, 280), text, 0.5) | changes


def write_lines(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def refusal(path, records, **kwargs):
    """The UserError's problems; the error itself must name the file."""
    with pytest.raises(UserError) as error:
        read_predictions(path, records, **kwargs)
    assert str(path) in str(error.value)
    return error.value.problems


# ---- one line ----------------------------------------------------------------------------------------------------------


def test_a_line_holds_the_answer_in_pixels_of_the_original_image():
    assert json.dumps(a_prediction()) == json.dumps(
        {
            "id": "a", "image": "a.jpg", "width": 640, "height": 480, "codec": "qwen2_5_vl", "input_size": [280, 280],
            "text": CAT, "objects": {"bbox": [[128.0, 48.0, 256.0, 96.0]], "category": ["cat"], "score": [1.0]},
            "problems": [], "seconds": 0.5,
        }
    )  # fmt: skip


def test_click_answers_have_points():
    prediction = make_prediction(a_record(), "qwen3_vl_click", (320, 320), "<click>500,250</click> cat", 0.1)
    assert prediction["objects"] == {"point": [[320.0, 120.0]], "category": ["cat"], "score": [1.0]}


def test_with_its_tokens_an_object_has_a_score_and_keeps_it_when_read_again(tmp_path):
    spans = np.array([(i, i + 1) for i in range(len(CAT))])
    tokens = TokenScores(spans, np.full(len(CAT), np.log(0.5)), np.full((len(CAT), 10), np.log(0.1)))
    prediction = make_prediction(a_record(), "qwen2_5_vl", (280, 280), CAT, 0, tokens)
    objects = prediction["objects"]
    assert objects.keys() == {"bbox", "category", "score", *(f"score_{name}" for name in SCORERS)}
    assert objects["score_label"] == [0.5**3] and objects["score"] == objects[f"score_{DEFAULT}"]
    path = write_lines(tmp_path / "p.jsonl", prediction)
    assert read_predictions(path, [a_record()], reparse=True) == ([prediction], [])
    moved = prediction | {"objects": objects | {"category": ["dog"]}}
    ((again,), _) = read_predictions(write_lines(tmp_path / "q.jsonl", moved), [a_record()], reparse=True)
    assert again["objects"]["category"] == ["cat"] and again["objects"]["score"] == [1.0]


def test_rounding_keeps_boxes_valid(tmp_path):
    record = a_record(width=1, height=3000)
    text = '[{"bbox_2d": [2799, 1, 2800, 2], "label": "cat"}, {"bbox_2d": [3, 1, 4, 2], "label": "cat"}]'
    prediction = make_prediction(record, "qwen2_5_vl", (2800, 2800), text, 0)
    for x0, y0, x1, y1 in prediction["objects"]["bbox"]:
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 3000
    path = write_lines(tmp_path / "p.jsonl", prediction)
    assert read_predictions(path, [record]) == ([prediction], [])


@pytest.mark.parametrize("codec", CODECS)
def test_whatever_is_made_can_be_read(tmp_path, codec):
    record, frame = a_record(), (280, 280)
    text = CODECS[codec].encode([[128, 48, 256, 96], [0, 0, 640, 480]], ["cat", "ñandú 犬"], (480, 640), frame).text
    prediction = make_prediction(record, codec, frame, text, 0.1)
    assert len(prediction["objects"]["category"]) == 2
    path = write_lines(tmp_path / "p.jsonl", prediction)
    assert read_predictions(path, [record]) == ([prediction], [])
    assert read_predictions(path, [record], reparse=True) == ([prediction], [])


# ---- reading -----------------------------------------------------------------------------------------------------------


def test_predictions_come_in_the_order_of_the_records(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", *map(a_prediction, "cab"))
    predictions, missing = read_predictions(path, [a_record(name) for name in "abc"])
    assert [prediction["id"] for prediction in predictions] == ["a", "b", "c"]
    assert missing == []


def test_foreign_duplicate_and_missing_ids_are_listed_together(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", *map(a_prediction, ["a", "x", "a", "y"]))
    problems = refusal(path, [a_record(name) for name in "abc"])
    assert len(problems) == 5
    for found, expected in zip(
        problems, ["line 2: id 'x'", "line 3: id 'a' stands twice", "line 4: id 'y'", "b:", "c:"], strict=True
    ):
        assert found.startswith(expected)
    assert "--allow-missing" in problems[-1]
    assert len(refusal(path, [a_record(name) for name in "abc"], allow_missing=True)) == 3


def test_allowed_missing_images_count_as_empty_answers(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", a_prediction("b"))
    records = [a_record(name) for name in "abc"]
    predictions, missing = read_predictions(path, records, allow_missing=True)
    assert missing == ["a", "c"]
    metrics = score(records, predictions, ["cat"])
    assert metrics["parse"] == {"images": 3, "clean": 1, "problems": {"missing": 2}}
    assert (metrics["matching"]["tp"], metrics["matching"]["fn"]) == (1, 2)


def test_missing_click_answers_are_empty_lists_of_points(tmp_path):
    click = make_prediction(a_record("b"), "qwen3_vl_click", (320, 320), "<click>300,150</click> cat", 0.1)
    records = [a_record("a"), a_record("b")]
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
        ('"a"', "a string, not an object"),
        ({"id": "a", "objects": {}}, "'a' lacks the key(s) image, width, height"),
        ({"fingerprint": "0"}, "unfinished run"),
        (a_prediction(seconds=math.nan), "seconds nan must be a number, or null"),
        (a_prediction(id=["a"]), "id ['a'] is not in this split"),
        (a_prediction(width=641), "made for 641 × 480, the image has 640 × 480"),
        (a_prediction(problems="none"), "problems 'none' must be a list"),
        (a_prediction() | {"text": None}, "text None must be a string"),
        (a_prediction(objects=[]), "objects must hold the lists"),
        (a_prediction(objects=with_objects(score=None)), "objects must hold the lists"),
        (a_prediction(objects=with_objects(point=[[1, 2]])), "objects must hold the lists"),
        (a_prediction(objects=with_objects(score=[])), "differ in length: {'bbox': 1, 'category': 1, 'score': 0}"),
        (a_prediction(objects=with_objects(category=[7])), "category 7 is not a string"),
        (a_prediction(objects=with_objects(score=[float("nan")])), "score nan is not a number from 0 to 1"),
        (a_prediction(objects=with_objects(score=[1.01])), "score 1.01 is not a number from 0 to 1"),
        (a_prediction(objects=with_objects(score=[True])), "score True is not a number from 0 to 1"),
        (a_prediction(objects=with_objects(score_label=[2])), "score_label 2 is not a number from 0 to 1"),
        (a_prediction(objects=with_objects(score_label=[])), "'score': 1, 'score_label': 0}"),
        (a_prediction(objects=with_objects(score_label="high")), "score_label 'high' must be a list"),
        (a_prediction(objects=with_objects(bbox=[[1, 2, 3]])), "bbox [1, 2, 3] is not [x0, y0, x1, y1]"),
        (a_prediction(objects=with_objects(bbox=[[3, 2, 3, 4]])), "bbox [3, 2, 3, 4] is not [x0, y0, x1, y1]"),
        (a_prediction(objects=with_objects(bbox=[[1, 5, 3, 4]])), "bbox [1, 5, 3, 4] is not"),
        (a_prediction(objects=with_objects(bbox=[[1, 2, "3", 4]])), "bbox [1, 2, '3', 4] is not"),
        (a_prediction(objects=with_objects(bbox=[[1, 2, float("inf"), 4]])), "bbox [1, 2, inf, 4] is not"),
        (a_prediction(objects=with_objects(bbox=[[1, 2, 10**400, 4]])), "is not [x0, y0, x1, y1]"),
        (
            a_prediction(objects={"point": [[1, 2, 3]], "category": ["cat"], "score": [1]}),
            "point [1, 2, 3] is not [x, y]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_named_with_its_number_and_value(tmp_path, line, expected):
    path = write_lines(tmp_path / "p.jsonl", a_prediction("b"), line)
    (problem,) = refusal(path, [a_record("a"), a_record("b")], allow_missing=True)
    assert problem.startswith("line 2: ")
    assert expected in problem


def test_all_problems_are_collected(tmp_path):
    bad = a_prediction(objects=with_objects(bbox=[[3, 2, 1, 4]], score=[2]), width=1)
    problems = refusal(write_lines(tmp_path / "p.jsonl", "{", bad), [a_record("a"), a_record("b")])
    assert len(problems) == 5  # torn line, size, box, score, missing b


def test_boxes_and_points_cannot_be_mixed(tmp_path):
    click = make_prediction(a_record("b"), "qwen3_vl_click", (320, 320), "None", 0.1)
    with pytest.raises(UserError, match="points and others boxes"):
        read_predictions(write_lines(tmp_path / "p.jsonl", a_prediction(), click), [a_record("a"), a_record("b")])


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist.*evaluate\.py"):
        read_predictions(tmp_path / "none.jsonl", [])


# ---- reading the text again --------------------------------------------------------------------------------------------


def test_reparse_reads_the_text_and_not_the_objects(tmp_path):
    line = a_prediction(text=CAT[:-1], objects={"broken": 1}, problems=["old"])
    path = write_lines(tmp_path / "p.jsonl", line)
    refusal(path, [a_record()])
    ((prediction,), _) = read_predictions(path, [a_record()], reparse=True)
    assert prediction["objects"] == {"bbox": [[128.0, 48.0, 256.0, 96.0]], "category": ["cat"], "score": [1.0]}
    assert prediction["problems"] == ["truncated"]
    assert prediction["seconds"] == 0.5


@pytest.mark.parametrize("problems", [["truncated"], ["looped"], ["truncated", "looped"]])
def test_reparse_still_knows_what_ended_an_answer(tmp_path, problems):
    """Of a whole text; one that breaks off says so itself."""
    text = CAT[:-1] if len(problems) > 1 else CAT
    path = write_lines(tmp_path / "p.jsonl", a_prediction(text=text, problems=problems))
    ((prediction,), _) = read_predictions(path, [a_record()], reparse=True)
    assert prediction["problems"] == problems


def test_reparse_reads_by_the_lines_codec(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", a_prediction(codec="qwen3_vl"))
    ((prediction,), _) = read_predictions(path, [a_record()], reparse=True)
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
    path = write_lines(tmp_path / "p.jsonl", a_prediction(**changes))
    assert len(read_predictions(path, [a_record()])[0]) == 1
    (problem,) = refusal(path, [a_record()], reparse=True)
    assert expected in problem


# ---- writing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "predictions.jsonl"


def interrupted_run(path, names, mark="mark"):
    with pytest.raises(KeyboardInterrupt), PredictionWriter(path, mark) as writer:
        for name in names:
            writer.add(a_prediction(name))
        raise KeyboardInterrupt


def test_finished_predictions_stand_in_the_order_of_the_split(path):
    with PredictionWriter(path, "mark") as writer:
        for name in "cab":
            writer.add(a_prediction(name))
            assert not path.exists()
        writer.finish(["a", "b", "c"])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.jsonl"]


def test_lines_are_on_disk_as_they_come(path):
    with PredictionWriter(path, "mark") as writer:
        writer.add(a_prediction("a"))
        lines = partial_of(path).read_text().splitlines()
        assert json.loads(lines[0]) == {"fingerprint": "mark"}
        assert json.loads(lines[1]) == a_prediction("a")


def test_an_interrupted_run_goes_on_where_it_stopped(path):
    interrupted_run(path, "ab")
    assert not path.exists()
    with PredictionWriter(path, "mark") as writer:
        assert writer.done == {name: a_prediction(name) for name in "ab"}
        writer.add(a_prediction("c"))
    with PredictionWriter(path, "mark") as writer:
        assert list(writer.done) == ["a", "b", "c"]
        writer.finish(["c", "b", "a"])
    predictions, _ = read_predictions(path, [a_record(name) for name in "abc"])
    assert predictions == [a_prediction(name) for name in "abc"]


def test_every_cut_of_the_partial_file_is_survived(path):
    interrupted_run(path, "ab")
    whole = partial_of(path).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in [0, 5, *(end + shift for end in ends for shift in (-2, -1, 0, 3)), len(whole) - 40]:
        partial_of(path).write_bytes(whole[:cut])
        complete = [name for name, end in zip("ab", ends[1:], strict=True) if end <= cut]
        with PredictionWriter(path, "mark") as writer:
            assert list(writer.done) == complete, cut
            for name in "ab"[len(complete) :]:
                writer.add(a_prediction(name))
        assert partial_of(path).read_bytes() == whole, cut


def test_another_fingerprint_starts_over_and_says_so(path, capsys):
    interrupted_run(path, "ab", mark="old")
    assert not capsys.readouterr().err
    with PredictionWriter(path, "new") as writer:
        assert writer.done == {}
        writer.add(a_prediction("c"))
    assert len(partial_of(path).read_text().splitlines()) == 2
    assert f"2 answers in {partial_of(path)} are of another model" in capsys.readouterr().err


def test_an_old_result_stays_until_the_new_one_is_complete(path):
    path.parent.mkdir()
    path.write_text("old")
    interrupted_run(path, "a")
    assert path.read_text() == "old"
    with PredictionWriter(path, "mark") as writer:
        with pytest.raises(KeyError):
            writer.finish(["a", "b"])
        assert path.read_text() == "old"
        writer.add(a_prediction("b"))
        writer.finish(["a", "b"])
    assert len(path.read_text().splitlines()) == 2


def test_a_lone_surrogate_in_an_answer_survives(path):
    text = r'[{"bbox_2d": [56, 28, 112, 56], "label": "\ud83d cat"}]'
    prediction = a_prediction(text=text)
    assert prediction["objects"]["category"] == ["\ud83d cat"]
    interrupted_run(path, "")
    with PredictionWriter(path, "mark") as writer:
        writer.add(prediction)
    with PredictionWriter(path, "mark") as writer:
        assert writer.done == {"a": prediction}
        writer.finish(["a"])
    assert read_predictions(path, [a_record()])[0] == [prediction]


def test_the_fingerprint_follows_every_setting_and_no_order():
    settings = {"checkpoint": "runs/a/final", "max_new_tokens": 512, "prompt": {"system": "x"}}
    assert fingerprint(settings) == fingerprint(dict(reversed(settings.items())))
    assert fingerprint(settings) != fingerprint(settings | {"max_new_tokens": 513})
    assert fingerprint(settings) != fingerprint(settings | {"prompt": {"system": "y"}})
