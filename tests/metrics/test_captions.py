"""Scores of captions: over matched boxes only, and absent where no checkpoint wrote any."""

import builtins

import pytest

from boxtune.metrics.captions import caption_scores
from boxtune.metrics.matching import match_images
from boxtune.metrics.scoring import score
from tests.helpers.scoring import a_prediction, a_record

BOXES = [[0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 90, 90]]
CAPTIONS = ["the screw is loose", None, "a rusty old nut"]


def with_column(line: dict, captions: list) -> dict:
    line["objects"]["caption"] = captions
    return line


def scores(found: list, boxes=BOXES, wanted=CAPTIONS) -> dict | None:
    records, predictions = [with_column(a_record(boxes=BOXES), wanted)], [with_column(a_prediction(boxes=boxes), found)]
    return caption_scores(records, predictions, match_images(records, predictions))


def test_matched_boxes_with_a_caption_count():
    assert scores(["the screw is loose ", "x", "a nut"])["n"] == 2
    assert scores(["the screw is loose ", "x", "a nut"])["exact"] == 0.5
    assert scores([None, None, None])["exact"] == 0
    moved = [BOXES[0], BOXES[1], [300, 300, 320, 320]]
    found = scores(["the screw is loose", None, "a rusty old nut"], boxes=moved)
    assert (found["n"], found["exact"]) == (1, 1)
    assert scores([None] * 3, wanted=[None] * 3) == {"n": 0, "exact": None, "bleu": None}


def test_captions_stay_with_their_boxes_in_another_order():
    swapped = [BOXES[2], BOXES[0], BOXES[1]]
    assert scores(["a rusty old nut", "the screw is loose", None], boxes=swapped)["exact"] == 1


def test_bleu_of_words_and_ideographs():
    pytest.importorskip("sacrebleu")
    assert scores(["the screw is loose", None, "a rusty old nut"])["bleu"] == pytest.approx(1)
    half = scores(["the screw is missing", None, "a rusty old nut"])["bleu"]
    assert 0.5 < half < 1
    assert scores(["nut"] * 3, wanted=["nut"] * 3)["bleu"] == pytest.approx(1), "shorter than four words"
    chinese = scores(["螺丝连接点已松动", None, None], wanted=["螺丝连接点未松动", None, None])["bleu"]
    assert 0.2 < chinese < 1, "13a would take it for one word"


def test_without_sacrebleu_a_note_names_the_remedy(monkeypatch, capsys):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("sacrebleu"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert scores(["the screw is loose", None, None]) == {"n": 2, "exact": 0.5, "bleu": None}
    assert 'pip install "boxtune[captions]"' in capsys.readouterr().err


def test_metrics_have_the_key_only_with_captions():
    record = with_column(a_record(boxes=BOXES), CAPTIONS)
    plain = score([record], [a_prediction(boxes=BOXES)], ["cat"])
    assert "captions" not in plain
    found = score([record], [with_column(a_prediction(boxes=BOXES), CAPTIONS)], ["cat"])
    assert found["captions"]["exact"] == 1
    assert {key: value for key, value in found.items() if key != "captions"} == plain
