"""Candidate phrases: which labels snap to which, that it is reported, and that reading again gives the same."""

import pytest

from boxtune.answers.candidates import nearest
from boxtune.answers.grounding import Grounding
from boxtune.answers.parts import make_part, merge_parts
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.predictions import make_prediction
from boxtune.answers.responses import Response, read_responses
from boxtune.common.errors import UserError
from boxtune.common.json_lines import to_json_line
from boxtune.training import setup_examples
from boxtune.training.recipe import load_recipe
from tests.helpers.records import ROOT, make_record

CANDIDATES = ["screw", "cable label", "螺丝连接点"]
RECORD = make_record("a", "a.png", 100, 100, [], classes=["screw", "nut"])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("screws", "screw"),  # 10 of 11 characters match
        ("Screw", "screw"),
        ("ＳＣＲＥＷ", "screw"),
        ("cable labels", "cable label"),
        ("label", None),
        ("crew", "screw"),  # 8/9
        ("螺丝连接", "螺丝连接点"),
        ("bolt", None),
        ("screw" * 10_000, None),
    ],
)
def test_nearest(label, expected):
    assert nearest(label, tuple(CANDIDATES)) == expected


def test_a_label_between_two_candidates_stays():
    assert nearest("part c", ("part a", "part b")) is None
    assert nearest("part c", ("part a",)) == "part a"


def predict(*labels, **options):
    objects = ", ".join(
        f'{{"bbox_2d": [{i + 1}00, 100, 900, 900], "label": "{label}"}}' for i, label in enumerate(labels)
    )
    return make_prediction(RECORD, "qwen3_vl", (64, 64), f"[{objects}]", 0.1, **options)


def test_snapped_labels_are_reported_and_asked_ones_stay():
    plain = predict("screws", "nut", "bolt", asked=["screw", "nut"])
    found = predict("screws", "nut", "bolt", asked=["screw", "nut"], candidates=["screw", "nuts"])
    assert found["objects"]["category"] == ["screw", "nut", "bolt"]
    assert found["problems"] == ["snapped"]
    assert found["text"] == plain["text"]
    assert found["candidates"] == ["screw", "nuts"]
    assert predict("screw", asked=["screw"], candidates=CANDIDATES) == predict("screw", asked=["screw"])
    noise = predict("noise", "screw", asked=["screw"], candidates=["noises", "screw"], noise_label="noise")
    assert noise["problems"] == ["noise"]


def test_the_line_of_a_file_is_read_again_as_before(tmp_path):
    found = predict("screws", asked=["screw", "nut"], candidates=CANDIDATES)
    parts = [make_part(RECORD["messages"][0]["content"], None, (64, 64), found["text"], None, False)]
    path = tmp_path / "predictions.jsonl"
    for line in (found, merge_parts(RECORD, parts, [found])):
        path.write_text(to_json_line(line))
        for reparse in (False, True):
            [again], _ = read_predictions(path, [RECORD], reparse=reparse, classes=["screw", "nut"])
            assert again == line
    path.write_text(to_json_line(found | {"candidates": "screw"}))
    with pytest.raises(UserError, match="candidates 'screw' must be a list"):
        read_predictions(path, [RECORD], reparse=True)


def test_grounding_stores_them_only_if_there_are_any(tmp_path):
    wording = {"system_prompt": "", "format_sentence": "", "min_pixels": 1, "max_pixels": 2, "max_new_tokens": 3}
    grounding = Grounding(codec="qwen3_vl", base_model="x", **wording)
    grounding.save(tmp_path)
    assert "candidates" not in (tmp_path / "grounding.json").read_text()
    assert Grounding.load(tmp_path) == grounding
    stored = Grounding(codec="qwen3_vl", base_model="x", candidates=CANDIDATES, **wording)
    stored.save(tmp_path)
    assert Grounding.load(tmp_path).candidates == CANDIDATES
    response = Response(predict("screws")["text"], (64, 64), None, None)
    assert read_responses([RECORD], [response], stored, False, verify=list)["problems"] == ["snapped"]


def test_keys_of_the_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    own = (ROOT / "recipes" / "tiny_nutrition_qlora.yaml").read_text()

    def candidates(value, classes=("screw", "nut")):
        path.write_text(f"{own}\ncandidates: {value}\n")
        return setup_examples.choose_candidates(load_recipe(["--config", str(path)]).options, list(classes))

    assert candidates("true") == ["screw", "nut"]
    assert candidates("[screw, bolt, nut, bolt]") == ["screw", "bolt", "nut"]
    with pytest.raises(UserError, match="classes of the data are not among them"):
        candidates("[screw]")
    for value in ("[]", '["<|im_end|>"]', "[true]"):
        with pytest.raises(UserError, match="candidates"):
            candidates(value)
    assert setup_examples.choose_candidates(load_recipe(["--config", "tiny_nutrition_qlora"]).options, ["screw"]) == []
