"""grounding.json: what a checkpoint must remember, and every value in it that cannot be used."""

import dataclasses
import json

import pytest

from boxtune.answers.grounding import Grounding
from boxtune.common.errors import UserError

GOOD = Grounding(
    codec="qwen3_vl",
    system_prompt="Find things. ä",
    format_sentence="",
    min_pixels=1,
    max_pixels=50176,
    max_new_tokens=1,
    base_model="m",
    base_revision="abc",
    classes=["cat"],
    calibration=[0.5, -2],
    seen_pixels=[100.0, 100.0],
    seen_aspects=[0.5, 2],
)


def test_reading_back_gives_what_was_written(tmp_path):
    GOOD.save(tmp_path)
    assert Grounding.load(tmp_path) == GOOD and GOOD.get_codec().name == "qwen3_vl"
    assert (
        GOOD.problems()
        == dataclasses.replace(GOOD, base_revision=None, calibration=[], seen_pixels=[]).problems()
        == []
    )
    assert "ä" in (tmp_path / "grounding.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("codec", "yolo", "must be one of qwen2_vl"),
        ("system_prompt", None, "must be str"),
        ("base_revision", 5, "must be str | None"),
        ("base_precision", "int8", "must be one of nf4, bfloat16, float16, float32"),
        ("compute_dtype", "nf4", "must be one of bfloat16, float16, float32"),
        ("quantized_vision", 1, "must be bool"),
        ("min_pixels", 0, "must be at least 1"),
        ("max_pixels", True, "must be int"),
        ("max_new_tokens", 5.0, "must be int"),
        ("max_new_tokens", -1, "must be at least 1"),
        ("classes", "cat", "must be list"),
        ("classes", [1], "must be list"),
        ("questions", ["a", None], "must be list"),
        ("calibration", [1.0], "must be empty, or a finite slope above 0 and an intercept"),
        ("calibration", [0.0, 1.0], "must be empty, or a finite slope above 0 and an intercept"),
        ("calibration", [1.0, 1.0, 1.0], "must be empty"),
        ("calibration", [1.0, float("inf")], "must be empty"),
        ("calibration", ["1", "2"], "must be list"),
        ("descriptions", {"a": 1}, "must be dict"),
        ("descriptions", ["a"], "must be dict"),
        ("seen_pixels", [2.0, 1.0], "must be empty, or two finite numbers above 0 in ascending order"),
        ("seen_pixels", [0.0, 1.0], "must be empty, or two"),
        ("seen_pixels", [1.0, float("inf")], "must be empty, or two"),
        ("seen_aspects", [1.0], "must be empty, or two"),
        ("seen_aspects", [1, True], "must be list"),
    ],
)
def test_each_unusable_value_is_named(tmp_path, key, value, reason):
    (tmp_path / "grounding.json").write_text(json.dumps(dataclasses.asdict(GOOD) | {key: value}))
    with pytest.raises(UserError, match="has values that cannot be used") as error:
        Grounding.load(tmp_path)
    [problem] = error.value.problems
    assert problem.startswith(f"{key}: {value!r} {reason}")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"codec": "qwen3_vl", "unknown": 1}'])
def test_a_corrupt_file_is_one_message(tmp_path, text):
    (tmp_path / "grounding.json").write_text(text)
    with pytest.raises(UserError, match=r"grounding.json cannot be read: .* Take it from the run's final/ folder"):
        Grounding.load(tmp_path)
    (tmp_path / "grounding.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(dataclasses.asdict(GOOD)).encode())
    assert Grounding.load(tmp_path) == GOOD
