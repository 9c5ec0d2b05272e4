"""The gate: its question, its threshold, and what a gated prediction looks like in a file."""

import json

import pytest

from boxtune.answers.decoding import Decoding
from boxtune.answers.gate import choose_gate, gate_question, gated_prediction
from boxtune.answers.prediction_file import read_predictions
from boxtune.metrics.scoring import score
from tests.helpers.predictions import cat_record, write_lines


@pytest.mark.parametrize(
    ("own", "unrelated", "threshold"),
    [
        ([0.9, 0.8, 0.7], [0.1, 0.2], 0.7),  # loses none of a few
        ([0.05, *[0.9] * 99], [0.1, 0.2], 0.9),  # two of a hundred may be lost
        ([0.05, 0.06, 0.07, *[0.9] * 97], [0.1, 0.01], 0.07),
        ([0.9, 0.8], [0.95, 0.85], 0.0),  # keeps out none
        ([], [0.1], 0.0),
        ([0.1234567], [0.1], 0.123456),  # rounded down, so that the image itself passes
    ],
)
def test_the_threshold_loses_few_images_and_is_off_if_it_keeps_out_none(own, unrelated, threshold):
    assert choose_gate(own, unrelated) == threshold


def test_the_question_names_every_class():
    question = gate_question(cat_record(), ["cat", "dog", "bird"])
    assert question["messages"][0]["content"] == "<image>Is there a cat, dog or bird in the image?"
    assert question["objects"]["bbox"] == [] and question["id"] == "a"


def test_a_gate_that_is_off_is_not_stored():
    assert "gate" not in Decoding().to_json() and Decoding(gate=0.5).to_json()["gate"] == 0.5
    assert Decoding(gate=1.5).problems() == ["gate: 1.5 must be a number from 0 to 1"]


@pytest.mark.parametrize("reparse", [False, True])
def test_a_gated_prediction_is_clean_also_when_it_is_read_again(tmp_path, reparse):
    record = cat_record()
    path = write_lines(tmp_path / "predictions.jsonl", gated_prediction(record, "qwen3_vl", (280, 280)))
    predictions, _ = read_predictions(path, [record], reparse=reparse, classes=["cat"])
    assert predictions == [json.loads(path.read_text())]
    assert predictions[0]["problems"] == ["gated"] and predictions[0]["objects"]["category"] == []
    metrics = score([record], predictions, ["cat"])
    assert metrics["parse"]["clean"] == 1 and metrics["matching"]["fn"] == 1
