"""Writing predictions.jsonl: an interrupted run continues, and nothing is lost."""

import json

import pytest

from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.prediction_writer import PredictionWriter, fingerprint, partial_of, predict
from tests.helpers.predictions import cat_prediction, cat_record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "predictions.jsonl"


def interrupted_run(path, names, mark="mark"):
    with pytest.raises(KeyboardInterrupt), PredictionWriter(path, mark) as writer:
        for name in names:
            writer.add(cat_prediction(name))
        raise KeyboardInterrupt


def test_finished_predictions_are_in_the_order_of_the_split(path):
    with PredictionWriter(path, "mark") as writer:
        for name in "cab":
            writer.add(cat_prediction(name))
            assert not path.exists()
        writer.finish(["a", "b", "c"])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.jsonl"]


def test_each_line_is_on_disk_at_once(path):
    with PredictionWriter(path, "mark") as writer:
        writer.add(cat_prediction("a"))
        lines = partial_of(path).read_text().splitlines()
        assert json.loads(lines[0]) == {"fingerprint": "mark"}
        assert json.loads(lines[1]) == cat_prediction("a")


def test_an_interrupted_run_continues_where_it_stopped(path):
    interrupted_run(path, "ab")
    assert not path.exists()
    with PredictionWriter(path, "mark") as writer:
        assert writer.done == {name: cat_prediction(name) for name in "ab"}
        writer.add(cat_prediction("c"))
    with PredictionWriter(path, "mark") as writer:
        assert list(writer.done) == ["a", "b", "c"]
        writer.finish(["c", "b", "a"])
    predictions, _ = read_predictions(path, [cat_record(name) for name in "abc"])
    assert predictions == [cat_prediction(name) for name in "abc"]


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
                writer.add(cat_prediction(name))
        assert partial_of(path).read_bytes() == whole, cut


def test_another_fingerprint_starts_over_and_says_so(path, capsys):
    interrupted_run(path, "ab", mark="old")
    assert not capsys.readouterr().err
    with PredictionWriter(path, "new") as writer:
        assert writer.done == {}
        writer.add(cat_prediction("c"))
    assert len(partial_of(path).read_text().splitlines()) == 2
    assert f"{partial_of(path)} holds 2 prediction(s) of another model" in capsys.readouterr().err


def test_an_old_result_stays_until_the_new_one_is_complete(path):
    path.parent.mkdir()
    path.write_text("old")
    interrupted_run(path, "a")
    assert path.read_text() == "old"
    with PredictionWriter(path, "mark") as writer:
        with pytest.raises(KeyError):
            writer.finish(["a", "b"])
        assert path.read_text() == "old"
        writer.add(cat_prediction("b"))
        writer.finish(["a", "b"])
    assert len(path.read_text().splitlines()) == 2


def test_a_lone_surrogate_in_an_answer_survives(path):
    text = r'[{"bbox_2d": [56, 28, 112, 56], "label": "\ud83d cat"}]'
    prediction = cat_prediction(text=text)
    assert prediction["objects"]["category"] == ["\ud83d cat"]
    interrupted_run(path, "")
    with PredictionWriter(path, "mark") as writer:
        writer.add(prediction)
    with PredictionWriter(path, "mark") as writer:
        assert writer.done == {"a": prediction}
        writer.finish(["a"])
    assert read_predictions(path, [cat_record()])[0] == [prediction]


def test_the_fingerprint_depends_on_every_setting_but_not_on_their_order():
    settings = {"checkpoint": "runs/a/final", "max_new_tokens": 512, "prompt": {"system": "x"}}
    assert fingerprint(settings) == fingerprint(dict(reversed(settings.items())))
    assert fingerprint(settings) != fingerprint(settings | {"max_new_tokens": 513})
    assert fingerprint(settings) != fingerprint(settings | {"prompt": {"system": "y"}})


def test_a_continued_run_asks_only_for_what_is_missing(path):
    interrupted_run(path, "b", mark=fingerprint({"seed": 0}))
    asked = []

    def ask(records):
        asked.extend(record["id"] for record in records)
        return [cat_prediction(record["id"]) for record in reversed(records)]

    predictions = predict(ask, [cat_record(name) for name in "abc"], path, settings={"seed": 0})
    assert asked == ["a", "c"]
    assert [prediction["id"] for prediction in predictions] == ["a", "b", "c"]
