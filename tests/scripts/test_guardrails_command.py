"""evaluate.py --guardrails and merge_adapter.py --require-guardrails."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate
import merge_adapter
from boxtune.answers.grounding import Grounding
from boxtune.metrics.guardrail_rules import DOMAINS, PROBES, Probe, read_guardrails, write_guardrails
from tests.helpers.training import train

SUITE = """
probes: [unrelated, blindness, crops, absent, yes_no, untrained, captions, drift, domains]
images: 2
unrelated_count: 2
questions: 2
untrained_classes: [circle]
caption_prompt: Describe the image.
caption_tokens: 8
drift_texts: [Detect every circle in the image.]
"""
FAST = ["--max-new-tokens", "24", "--limit", "3", "--precision", "float32"]


@pytest.fixture(scope="module")
def run(squares, tmp_path_factory) -> Path:
    return train(squares, tmp_path_factory.mktemp("run") / "run", "--learning_rate", "1e-4", "--lora_vision", "false")


@pytest.fixture
def suite(tmp_path) -> Path:
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path / "suite.yaml"


def refused(main, words, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_writes_and_shows_the_guardrails(run, suite, tmp_path, capsys):
    out = tmp_path / "eval"
    words = ["--ckpt", run / "final", "--guardrails", suite, "--out", out, *FAST]
    evaluate.main([str(word) for word in words])
    printed = capsys.readouterr().out
    probes = read_guardrails(out / "guardrails.json")
    assert probes.keys() == {*PROBES, *DOMAINS}
    # Two steps at a low rate change next to nothing, so that the adapter is compared with its own base here.
    assert probes["drift_top1"].value > 0.9 and 0 < probes["drift_kl"].value < 0.1
    assert probes["drift_kl"].baseline == 0.0 and probes["irrelevant_pass_rate"].n == 2
    assert "irrelevant_pass_rate" in printed and "unrelated images" in printed and "guardrails.json" in printed
    lines = [json.loads(line) for line in (out / "guardrail_answers.jsonl").read_text().splitlines()]
    assert {line["model"] for line in lines} == {"base", "model"}
    assert len([line for line in lines if line["id"].startswith("unrelated/") and line["kind"] == "boxes"]) == 4
    assert json.loads((out / "metrics.json").read_text())["provenance"]["split"] == "test"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predictions", "p.jsonl"], "--guardrails has no effect with --predictions"),
        (["--ckpt", "x", "--server", "http://localhost:1/v1"], "--guardrails has no effect with --server"),
        (["--ckpt", "x", "--tune"], "--guardrails has no effect with --tune"),
        (["--ckpt", "x"], "no guardrail suite 'smal'. Did you mean small"),
    ],
)
def test_calls_without_a_use_for_the_suite_are_refused(words, message, capsys):
    assert message in refused(evaluate.main, [*words, "--guardrails", "smal"], capsys)


# ---- promotion -----------------------------------------------------------------------------------------------------------


def results(passed: float, hallucinated: float) -> dict[str, Probe]:
    return {
        "irrelevant_pass_rate": Probe(passed, 20, 0.8),
        "hallucination_rate": Probe(hallucinated, 20, 0.1),
    }


@pytest.mark.slow
def test_a_model_is_merged_only_if_its_guardrails_hold(run, tmp_path, capsys):
    path = run / "eval" / "guardrails.json"
    words = [
        "--ckpt",
        run / "final",
        "--out",
        tmp_path / "merged",
        "--samples",
        "1",
        "--skip-nf4",
        "--require-guardrails",
    ]
    error = refused(merge_adapter.main, words, capsys)
    assert f"{path} does not exist" in error and f"evaluate.py --ckpt {run / 'final'} --guardrails small" in error

    write_guardrails(path, results(0.5, 0.3))
    error = refused(merge_adapter.main, words, capsys)
    assert "irrelevant_pass_rate: 0.500 must be at least 0.700" in error
    assert "hallucination_rate: 0.300 must be at most 0.200" in error and not (tmp_path / "merged").exists()

    write_guardrails(path, results(0.8, 0.1))
    os.utime(path, (1, 1))
    assert "is older than the weights" in refused(merge_adapter.main, words, capsys)

    os.utime(path)
    merge_adapter.main([str(word) for word in words])
    assert (tmp_path / "merged" / "config.json").is_file()


# ---- gate ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tune_stores_a_gate_and_an_evaluation_uses_it(run, squares, tmp_path, capsys):
    checkpoint = shutil.copytree(run / "final", tmp_path / "final")
    words = ["--ckpt", checkpoint, "--data", squares, *FAST]
    evaluate.main([str(word) for word in [*words, "--tune", "--gate", "--out", tmp_path / "tuning"]])
    assert "gate: " in capsys.readouterr().out
    result = json.loads((tmp_path / "tuning" / "tuning.json").read_text())
    assert result["gate"]["unrelated"] == 40 and result["gate"]["own_passed"] == result["gate"]["own"] > 0
    assert Grounding.load(checkpoint).decoding.gate == result["gate"]["threshold"]

    stored = Grounding.load(checkpoint)
    replace(stored, decoding=replace(stored.decoding, gate=1.0)).save(checkpoint)
    evaluate.main([str(word) for word in [*words, "--out", tmp_path / "eval"]])
    lines = [json.loads(line) for line in (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(line["problems"] == ["gated"] for line in lines)


def test_a_gate_needs_tune_and_the_weights(capsys):
    assert "--gate has no effect with --ckpt" in refused(evaluate.main, ["--ckpt", "x", "--gate"], capsys)
    words = ["--ckpt", "x", "--tune", "--gate", "--server", "http://localhost:1/v1"]
    assert "--gate has no effect with --server" in refused(evaluate.main, words, capsys)
