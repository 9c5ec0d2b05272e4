"""sweep.py as a user runs it, on the embedded model."""

import json

import pytest
import yaml

import sweep
from boxtune.reports.model_card import is_finished
from boxtune.reports.run_results import read_results

# Two steps of one example each. `bad` stops when its training begins.
CONTENT = {
    "recipe": "tiny_nutrition_qlora",
    "evaluate_args": ["--limit", "2", "--max-new-tokens", "8"],
    "runs": {
        "A0": {"base": True},
        "bad": {"continue_from": "runs/never/final"},
        "C1": {"lora_llm_layers": -1, "lora_vision_blocks": "6-7"},
    },
    "keys": {
        "lora_parts": ["language_mlp", "vision_mlp"],
        "lora_r": 2,
        "lora_modules_to_save": ["merger"],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "eval_images": 0,
        "save_steps": 1,
        "save_total_limit": 1,
    },
}


def write(folder, squares, **changes):
    path = folder / "two.yaml"
    keys = CONTENT["keys"] | {"data_dir": str(squares)}
    path.write_text(yaml.safe_dump(CONTENT | {"keys": keys} | changes, sort_keys=False))
    return path


@pytest.mark.slow
def test_a_sweep_trains_evaluates_and_reports_its_runs(squares, tmp_path, capsys):
    path = write(tmp_path, squares)
    with pytest.raises(SystemExit) as stopped:
        sweep.main([str(path), "--out", str(tmp_path / "runs")])
    said = capsys.readouterr()
    assert stopped.value.code == 1 and "bad-seed0: training failed with exit code 2" in said.out
    assert "runs/never/final is not an adapter" in said.err, "the last lines of its log"
    assert (tmp_path / "runs" / "pareto.png").is_file()

    results = {result.name: result for result in read_results(tmp_path / "runs")}
    assert results.keys() == {"A0", "C1"}
    assert (results["A0"].trainable, results["A0"].placement) == (0, "none")
    placement = "LLM 4, vision 6-7, merger whole, deepstack_merger_list.0 whole"
    assert results["C1"].placement == placement and results["C1"].trainable > 0

    # The base is asked as the trained run is.
    folders = [tmp_path / "runs" / f"{name}-seed0" for name in ("A0", "C1")]
    base, tuned = (json.loads((folder / "final" / "grounding.json").read_text()) for folder in folders)
    assert base == tuned
    assert [is_finished(folder / "final") for folder in folders] == [False, True], "the base gets no model card"
    metrics = [json.loads((folder / "eval" / "metrics.json").read_text()) for folder in folders]
    base, tuned = (values["provenance"] for values in metrics)
    assert base | {"checkpoint": tuned["checkpoint"]} == tuned and base["split"] == "validation"

    # Again: what is finished is skipped.
    sweep.main([str(path), "--out", str(tmp_path / "runs"), "--only", "A0,C1"])
    said = capsys.readouterr().out
    assert "A0-seed0: finished already" in said and "C1-seed0: finished already" in said

    # With another key, the folder holds another run.
    other = write(tmp_path, squares, runs={"C1": {"lora_llm_layers": -2, "lora_vision_blocks": "6-7"}})
    with pytest.raises(SystemExit):
        sweep.main([str(other), "--out", str(tmp_path / "runs")])
    assert "holds a run with another lora_llm_layers; delete the folder, or rename the run" in capsys.readouterr().err


def test_a_dry_run_lists_the_runs_and_writes_nothing(squares, tmp_path, capsys):
    sweep.main([str(write(tmp_path, squares)), "--out", str(tmp_path / "runs"), "--dry-run", "--seeds", "2"])
    assert capsys.readouterr().out.splitlines() == [
        "A0-seed0: the base, nothing trained",
        "bad-seed0: continue_from: runs/never/final",
        "C1-seed0: lora_llm_layers: -1, lora_vision_blocks: 6-7",
        "bad-seed1: continue_from: runs/never/final",
        "C1-seed1: lora_llm_layers: -1, lora_vision_blocks: 6-7",
    ]
    assert not (tmp_path / "runs").exists()


def test_all_runs_with_wrong_keys_are_reported_before_the_first_begins(squares, tmp_path, capsys):
    runs = {"a": {"lora_llm_layer": -1}, "b": {"lora_r": 0}, "c": {"lora_llm_layers": -1}}
    with pytest.raises(SystemExit) as stopped:
        sweep.main([str(write(tmp_path, squares, runs=runs)), "--out", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "unknown key 'lora_llm_layer'; did you mean lora_llm_layers?" in error
    assert "b-seed0: " in error and "lora_r: 0 must be at least 1" in error and "c-seed0" not in error


def test_an_unknown_guardrail_suite_is_reported_before_the_first_run_begins(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.main([str(write(tmp_path, squares, guardrails="smal")), "--out", str(tmp_path / "runs")])
    assert stopped.value.code == 2 and "smal" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_layers_that_the_model_lacks_are_reported_before_the_first_run_begins(squares, tmp_path, capsys):
    runs = {"a": {"lora_llm_layers": -6}, "b": {"lora_vision_blocks": "20-23"}}
    with pytest.raises(SystemExit) as stopped:
        sweep.main([str(write(tmp_path, squares, runs=runs)), "--out", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "a-seed0: lora_llm_layers: '-6'" in error
    assert "b-seed0: lora_vision_blocks: '20-23' is beyond the last, 7" in error
    assert not (tmp_path / "runs").exists()
