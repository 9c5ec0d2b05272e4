"""When a model may be promoted, and the file of the results."""

import json

import pytest

from boxtune.common.errors import UserError
from boxtune.metrics.guardrail_rules import Probe, promotion_problems, read_guardrails, write_guardrails


def probes(passed, hallucinated, base_passed=0.8, base_hallucinated=0.1):
    return {
        "irrelevant_pass_rate": Probe(passed, 20, base_passed),
        "hallucination_rate": Probe(hallucinated, 20, base_hallucinated),
    }


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (probes(0.7, 0.2), []),  # exactly at both limits
        (probes(0.95, 0.0), []),
        (probes(0.65, 0.1), ["irrelevant_pass_rate: 0.650 must be at least 0.700"]),
        (probes(0.8, 0.25), ["hallucination_rate: 0.250 must be at most 0.200"]),
        (probes(0.2, 0.9), ["irrelevant_pass_rate", "hallucination_rate"]),
        (probes(0.05, 0.9, base_passed=0.1, base_hallucinated=0.85), []),  # as bad as its base
        (
            probes(0.85, 0.15, None, None),
            ["0.850 must be at least 0.900 (no base", "0.150 must be at most 0.100 (no base"],
        ),
        (probes(None, 0.1), ["irrelevant_pass_rate: not measured"]),
        ({}, ["irrelevant_pass_rate: not measured", "hallucination_rate: not measured"]),
    ],
)
def test_a_model_is_promoted_only_within_ten_points_of_its_base(found, named):
    problems = promotion_problems(found)
    assert len(problems) == len(named)
    assert all(part in problem for part, problem in zip(named, problems, strict=True))


def test_the_limits_can_be_chosen():
    assert promotion_problems(probes(0.65, 0.25), pass_drop=0.2, hallucination_rise=0.2) == []
    assert len(promotion_problems(probes(0.75, 0.15), pass_drop=0.0, hallucination_rise=0.0)) == 2


def test_results_survive_their_file(tmp_path):
    found = probes(0.5, 0.0) | {"crop_consistency": Probe(None, 0)}
    write_guardrails(tmp_path / "guardrails.json", found)
    assert read_guardrails(tmp_path / "guardrails.json") == found
    content = json.loads((tmp_path / "guardrails.json").read_text())
    assert content["irrelevant_pass_rate"] == {"value": 0.5, "n": 20, "baseline": 0.8}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 1}', '{"a": {"value": "x", "n": 1}}', '{"a": {"value": NaN, "n": 1}}', '{"a": {"n": 1}}']
)
def test_a_corrupt_file_is_named_with_the_command_that_makes_it(tmp_path, text):
    path = tmp_path / "guardrails.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"guardrails.json.*--guardrails small"):
        read_guardrails(path)


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"does not exist.*--guardrails small"):
        read_guardrails(tmp_path / "guardrails.json")
