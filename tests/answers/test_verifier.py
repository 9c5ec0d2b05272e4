"""The verifier: its questions, its scores in predictions, and what can be done with such predictions without the model."""

import numpy as np
import pytest

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import render_question
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction, with_score
from boxtune.answers.responses import Response, read_responses
from boxtune.answers.verifier import rank_by_verifier, verifier_questions
from boxtune.common.errors import UserError
from boxtune.data.questions import turns_for
from boxtune.metrics.scoring import score
from tests.helpers.predictions import cat_record, write_lines

# Of an image of 640 × 480 that the model saw as 320 × 280.
BOXES = '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}, {"bbox_2d": [0, 0, 1000, 500], "label": "dog"}]'
ASKED = "<image>Is the cat in the box [100, 200, 300, 400]?"


def grounding(codec="qwen3_vl", **settings) -> Grounding:
    return Grounding(codec, "", "Answer in JSON.", 1, 1, 64, "base", **settings)


def verified(*log_odds, calibration=(), text=BOXES, asked=None, **settings) -> dict:
    def verify(questions):
        if asked is not None:
            asked.extend(questions)
        return [log_odds[i] for i in range(len(questions))]

    known = grounding(decoding=Decoding(verify=True, **settings), verify_calibration=list(calibration))
    return read_responses([cat_record()], [Response(text, (280, 320), None, None)], known, False, verify)


def test_each_box_is_asked_about_in_the_wording_of_pretraining():
    asked = []
    verified(1, 2, asked=asked)
    texts = [question["messages"][0]["content"] for question in asked]
    assert texts == [ASKED, "<image>Is the dog in the box [0, 0, 1000, 500]?"]
    assert {question["id"] for question in asked} == {cat_record()["id"]}
    # The format sentence, which asks for boxes, is left out.
    assert render_question(asked[0], "", "Answer in JSON.")[0]["content"][1]["text"] == ASKED.removeprefix("<image>")


def test_the_box_is_in_the_coordinates_of_the_family():
    """Qwen2.5-VL counts pixels of the resized input; a predicted box keeps the numbers that the model wrote."""
    text = '[{"bbox_2d": [10, 20, 319, 100], "label": "cat"}]'
    line = make_prediction(cat_record(), "qwen2_5_vl", (280, 320), text, 0.0)
    assert line["objects"]["bbox"] == [[20, 34.286, 638, 171.429]]
    [question] = verifier_questions(cat_record(), line, CODECS["qwen2_5_vl"])
    assert question["messages"][0]["content"] == "<image>Is the cat in the box [10, 20, 319, 100]?"


def test_a_label_cannot_bring_an_image_or_the_end_of_the_turn_into_the_question():
    asked = []
    verified(1, asked=asked, text='[{"bbox_2d": [1, 2, 3, 4], "label": "a<image>b<|im_end|>c"}]')
    assert asked[0]["messages"][0]["content"] == "<image>Is the a b c in the box [1, 2, 3, 4]?"


def test_scores_are_the_log_odds_as_shares_and_calibrated_where_that_was_fitted():
    raw = verified(2.0, -1.0)["objects"]
    assert raw["score"] == raw["score_verify"] == [0.880797, 0.268941] and "score_verify_calibrated" not in raw
    calibrated = verified(2.0, -1.0, calibration=[0.5, -1.0])["objects"]
    assert calibrated["score_verify"] == raw["score_verify"]
    assert calibrated["score"] == calibrated["score_verify_calibrated"]
    assert calibrated["score"] == pytest.approx(1 / (1 + np.exp([0.0, 1.5])), abs=1e-5)
    extreme = verified(800.0, -np.inf, calibration=[3.0, 1.0])["objects"]
    assert all(0 <= value <= 1 for key in extreme if key.startswith("score") for value in extreme[key])
    assert verified(np.nan, 0.0)["objects"]["score"] == [0.0, 0.5]


def test_the_threshold_and_the_order_of_several_questions_follow_the_verifier():
    assert verified(-3.0, 3.0, score_threshold=0.5)["objects"]["category"] == ["dog"]
    record = cat_record() | {"messages": turns_for(["cat", "dog"])}
    questions = [record | {"messages": turns_for(["cat", "dog"], name)} for name in ("cat", "dog")]
    cat, dog = (f'[{{"bbox_2d": [1, 2, 300, 400], "label": "{name}"}}]' for name in ("cat", "dog"))
    responses = [Response(text, (280, 320), None, None) for text in (cat, dog)]
    known = grounding(decoding=Decoding(verify=True))
    line = read_responses(
        questions, responses, known, False, lambda rows: [2.0 if "dog" in str(rows[0]["messages"]) else 1.0]
    )
    assert line["objects"]["category"] == ["dog", "cat"] and line["objects"]["score_verify"] == [0.880797, 0.731059]


def test_points_have_no_boxes_to_ask_about_and_other_values_are_refused():
    assert "verify: True needs boxes" in grounding("qwen3_vl_click", decoding=Decoding(verify=True)).problems()[0]
    assert "verify: 1 must be true or false" in grounding(decoding=Decoding(verify=1)).problems()[0]
    assert grounding(verify_calibration=[-1.0, 0.0]).problems()[0].startswith("verify_calibration")


def test_a_file_with_the_column_can_be_ranked_by_it_and_one_without_names_the_setting(tmp_path):
    lines = [verified(2.0, -1.0), make_prediction(cat_record(), "qwen3_vl", (280, 320), BOXES, 0.0)]
    with_column, without = (write_lines(tmp_path / f"{i}.jsonl", line) for i, line in enumerate(lines))
    predictions, _ = read_predictions(with_column, [cat_record()])
    ranked = with_score(predictions, "verify")
    assert ranked[0]["objects"]["score"] == [0.880797, 0.268941]
    assert score([cat_record()], ranked, ["cat", "dog"])["score_source"] == "verify"
    calibrated = [rank_by_verifier(line, [0.5, -1.0]) for line in ranked]
    assert score([cat_record()], calibrated, ["cat", "dog"])["score_source"] == "verify_calibrated"
    with pytest.raises(UserError, match=r'--score verify: .* again with the decode setting "verify": true'):
        with_score(read_predictions(without, [cat_record()])[0], "verify")


def test_reading_the_text_again_keeps_the_scores_of_the_same_objects_only(tmp_path):
    """Other objects cannot be asked about without the model: their scores are 1, and ranking by the verifier is refused."""
    line = verified(2.0, -1.0)
    path = write_lines(tmp_path / "p.jsonl", line)
    [again], _ = read_predictions(path, [cat_record()], reparse=True, classes=["cat", "dog"])
    assert again["objects"] == line["objects"]
    changed = line | {"text": BOXES.replace("300", "301")}
    path = write_lines(tmp_path / "q.jsonl", changed)
    predictions, _ = read_predictions(path, [cat_record()], reparse=True, classes=["cat", "dog"])
    assert predictions[0]["objects"]["score"] == [1.0, 1.0] and "score_verify" not in predictions[0]["objects"]
    with pytest.raises(UserError, match="--score verify: 1 prediction"):
        with_score(predictions, "verify")
