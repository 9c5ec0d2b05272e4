"""What one line of predictions.jsonl holds."""

import json

import numpy as np
import pytest

from boxtune.answers.codecs import CODECS
from boxtune.answers.confidence import DEFAULT, SCORERS, TokenScores
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction, place_column
from tests.helpers.predictions import CAT, cat_prediction, cat_record, write_lines


def test_a_line_holds_the_answer_in_pixels_of_the_original_image():
    assert json.dumps(cat_prediction()) == json.dumps(
        {
            "id": "a", "image": "a.jpg", "width": 640, "height": 480, "codec": "qwen2_5_vl", "input_size": [280, 280],
            "text": CAT, "objects": {"bbox": [[128.0, 48.0, 256.0, 96.0]], "category": ["cat"], "score": [1.0]},
            "problems": [], "seconds": 0.5,
        }
    )  # fmt: skip


def test_click_answers_have_points():
    prediction = make_prediction(cat_record(), "qwen3_vl_click", (320, 320), "<click>500,250</click> cat", 0.1)
    assert prediction["objects"] == {"point": [[320.0, 120.0]], "category": ["cat"], "score": [1.0]}


def test_scores_from_tokens_are_kept_when_the_text_is_read_again(tmp_path):
    spans = np.array([(i, i + 1) for i in range(len(CAT))])
    tokens = TokenScores(spans, np.full(len(CAT), np.log(0.5)), np.full((len(CAT), 10), np.log(0.1)))
    prediction = make_prediction(cat_record(), "qwen2_5_vl", (280, 280), CAT, 0, tokens)
    objects = prediction["objects"]
    assert objects.keys() == {"bbox", "category", "score", *(f"score_{name}" for name in SCORERS)}
    assert objects["score_label"] == [0.5**3] and objects["score"] == objects[f"score_{DEFAULT}"]
    path = write_lines(tmp_path / "p.jsonl", prediction)
    assert read_predictions(path, [cat_record()], reparse=True) == ([prediction], [])
    moved = prediction | {"objects": objects | {"category": ["dog"]}}
    ((again,), _) = read_predictions(write_lines(tmp_path / "q.jsonl", moved), [cat_record()], reparse=True)
    assert again["objects"]["category"] == ["cat"] and again["objects"]["score"] == [1.0]


def test_rounding_keeps_boxes_valid(tmp_path):
    record = cat_record(width=1, height=3000)
    text = '[{"bbox_2d": [2799, 1, 2800, 2], "label": "cat"}, {"bbox_2d": [3, 1, 4, 2], "label": "cat"}]'
    prediction = make_prediction(record, "qwen2_5_vl", (2800, 2800), text, 0)
    for x0, y0, x1, y1 in prediction["objects"]["bbox"]:
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 3000
    path = write_lines(tmp_path / "p.jsonl", prediction)
    assert read_predictions(path, [record]) == ([prediction], [])


@pytest.mark.parametrize("codec", CODECS)
def test_every_prediction_can_be_written_and_read(tmp_path, codec):
    record, frame = cat_record(), (280, 280)
    text = CODECS[codec].encode([[128, 48, 256, 96], [0, 0, 640, 480]], ["cat", "ñandú 犬"], (480, 640), frame).text
    prediction = make_prediction(record, codec, frame, text, 0.1)
    assert len(prediction["objects"]["category"]) == 2
    path = write_lines(tmp_path / "p.jsonl", prediction)
    assert read_predictions(path, [record]) == ([prediction], [])
    assert read_predictions(path, [record], reparse=True) == ([prediction], [])


@pytest.mark.parametrize("codec", CODECS)
def test_the_place_column_follows_the_codec(codec):
    prediction = make_prediction(cat_record(), codec, (280, 280), "", 0)
    assert place_column(prediction["objects"]) == ("point" if CODECS[codec].is_click else "bbox")
    captions = {"caption": []} if CODECS[codec].has_captions else {}
    assert prediction["objects"] == {place_column(prediction["objects"]): [], "category": [], "score": [], **captions}
