"""Captions in answers: written after the label, read back, and never mistaken for a label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxtune.answers.codecs import CODECS, with_captions
from boxtune.answers.conversation import format_sentence, render
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction
from boxtune.common.errors import UserError
from boxtune.common.json_lines import to_json_line
from boxtune.data.record_checks import caption_problem
from tests.helpers.records import make_record

CODEC = CODECS["qwen3_vl_captions"]
SIZE = (100, 100)
BOX = '"bbox_2d": [100, 100, 500, 500]'


def read(text: str, asked=("screw", "nut"), codec=CODEC):
    """(labels, captions, problems)."""
    answer = codec.decode(text, SIZE, SIZE, asked)
    return answer.labels, answer.captions, answer.problems


def test_an_object_without_caption_has_no_such_key():
    boxes = [[10, 10, 50, 50], [0, 0, 20, 20]]
    text = CODEC.encode(boxes, ["screw", "nut"], SIZE, SIZE, ["loose", None]).text
    assert text == (
        '[{"bbox_2d": [100, 100, 500, 500], "label": "screw", "caption": "loose"}, '
        '{"bbox_2d": [0, 0, 200, 200], "label": "nut"}]'
    )
    assert read(text) == (["screw", "nut"], ["loose", None], [])


@given(st.lists(st.text().map(str.strip).filter(lambda text: caption_problem(text) is None and "think>" not in text)))
def test_every_caption_comes_back(captions):
    if any("```" in caption for caption in captions):
        return
    labels, boxes = ["screw"] * len(captions), [[10, 10, 50, 50]] * len(captions)
    text = CODEC.encode(boxes, labels, SIZE, SIZE, captions).text
    assert read(text) == (labels, [caption or None for caption in captions], [])
    _, found, _ = read(f"Here it is:\n```json\n{text}\n```")
    assert found == [caption or None for caption in captions]


def test_a_caption_is_no_label():
    text = f'[{{{BOX}, "caption": "screw"}}]'
    assert read(text)[0] == []
    assert "bad_label" in read(text)[2]
    labels, captions, problems = read(text, asked=["nut"])
    assert (labels, captions) == (["nut"], ["screw"])
    assert "no_label" in problems


@pytest.mark.parametrize(
    ("text", "captions", "problem"),
    [
        (f'[{{{BOX}, "label": "nut", "caption": null}}]', [None], None),
        (f'[{{{BOX}, "label": "nut", "caption": 12}}]', [None], "bad_caption"),
        (f'[{{{BOX}, "label": "nut", "caption": ""}}]', [None], "bad_caption"),
        (f'[{{{BOX}, "label": "nut", "caption": ["a", "b"]}}]', [None], "bad_caption"),
        (f"[{{{BOX}, 'label': 'nut', 'caption': 'it''s loose'}}]", ["it''s loose"], "quotes"),
        (f'[{{"caption": "a", {BOX}, "label": "nut"}}]', ["a"], "key_order"),
        (f'[{{{BOX}, "label": "nut", "caption": "a", {BOX}, "label": "nut"}}]', ["a", None], "key_order"),
        (f'[{{{BOX}, "label": "nut", {BOX}, "label": "nut", "caption": "b"}}]', [None, "b"], "key_order"),
        (f'[{{"caption": "a", {BOX}, "label": "nut", "caption": "b", {BOX}, "label": "nut"}}]', ["a", "b"], "key_order"),
        (f'[{{{BOX}, "label": "nut", "caption": "a"}}, {{{BOX}, "label": "nut", "capt', ["a"], "truncated"),
    ],
)  # fmt: skip
def test_other_forms(text, captions, problem):
    labels, found, problems = read(text)
    assert labels == ["nut"] * len(captions)
    assert found == captions
    assert (problem in problems) if problem else not problems


def test_other_codecs_read_captions_as_before():
    text = CODEC.encode([[10, 10, 50, 50]], ["screw"], SIZE, SIZE, ["loose"]).text
    plain = CODECS["qwen3_vl"]
    assert read(text, codec=plain) == (["screw"], [], [])
    assert plain.encode([[10, 10, 50, 50]], ["screw"], SIZE, SIZE, ["loose"]).text == f'[{{{BOX}, "label": "screw"}}]'
    assert (
        "caption"
        not in make_prediction(make_record("a", "a.png", 100, 100, []), "qwen3_vl", SIZE, text, 0.1)["objects"]
    )


def test_predictions_have_the_captions_and_read_them_again(tmp_path):
    record = make_record("a", "a.png", 100, 100, [([10, 10, 50, 50], "screw")])
    record["objects"]["caption"] = [" loose "]
    conversation, _ = render(record, CODEC, SIZE, "", format_sentence(CODEC))
    question, answer = (turn["content"][-1]["text"] for turn in conversation)
    assert question.endswith('"label" and "caption" for each object.')
    prediction = make_prediction(record, CODEC.name, SIZE, answer, 0.1)
    assert prediction["objects"]["caption"] == ["loose"]
    assert prediction["problems"] == []
    path = tmp_path / "predictions.jsonl"
    path.write_text(to_json_line(prediction))
    for reparse in (False, True):
        assert read_predictions(path, [record], reparse=reparse)[0] == [prediction]
    path.write_text(to_json_line(prediction | {"objects": prediction["objects"] | {"caption": [1]}}))
    with pytest.raises(UserError, match="caption"):
        read_predictions(path, [record])


def test_syntaxes_without_room_for_captions_are_refused():
    for name in ("qwen2_vl", "qwen3_vl_click"):
        with pytest.raises(UserError, match=f"captions: {name} does not write its objects as JSON"):
            with_captions(CODECS[name])
    assert with_captions(CODECS["qwen2_5_vl"]).name == "qwen2_5_vl_captions"
