"""The Optuna search: its keys, its trials, stopping trials early, and going on after an interruption."""

import importlib.util
import json

import pytest

from boxtune.common.errors import UserError
from boxtune.sweeps.search import Search, check_search, search_jobs
from boxtune.sweeps.sweep_file import Sweep

KEYS = {
    "learning_rate": {"low": 1.0e-5, "high": 1.0e-3, "log": True},
    "lora_r": [8, 16],
    "warmup_steps": {"low": 0, "high": 9},
}
has_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is an optional package")


def make_sweep(**search) -> Sweep:
    values = {"trials": 4, "metric": "f1", "prune_by": "eval_f1", "startup_trials": 1, "keys": KEYS}
    return Sweep("s", "tiny_nutrition_qlora", keys={"weight_decay": 0.1}, search=values | search)


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ({"trials": 0, "keys": KEYS}, "trials: give a whole number"),
        ({"trials": 1}, "keys: name at least one recipe key"),
        ({"trials": 1, "keys": KEYS, "metric": "loss"}, "metric: 'loss' must be one of"),
        ({"trials": 1, "keys": KEYS, "trails": 3}, "'trails' is not one of trials"),
        ({"trials": 1, "keys": {"lora_r": []}}, "keys: lora_r: the list is empty"),
        ({"trials": 1, "keys": {"lora_r": {"low": 3}}}, "keys: lora_r: {'low': 3} must be a list of values, or"),
        ({"trials": 1, "keys": {"lora_r": {"low": 3, "high": 2}}}, "keys: lora_r: {'low': 3, 'high': 2} needs numbers"),
        (
            {"trials": 1, "keys": {"lr": {"low": "1e-5", "high": 1.0}}},
            "keys: lr: {'low': '1e-5', 'high': 1.0} needs numbers",
        ),
        ({"trials": 1, "keys": {"lr": {"low": 0, "high": 1, "log": True}}}, "keys: lr: log needs low > 0"),
    ],
)
def test_a_wrong_search_is_reported(search, problem):
    with pytest.raises(UserError) as error:
        check_search(search)
    assert any(line.startswith(problem) for line in error.value.problems)


def test_a_search_without_optuna_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Optuna.*pip install .*\[search\]"):
        check_search({"trials": 1, "keys": KEYS})


def test_the_ends_of_every_key_are_checked_as_runs_are(tmp_path):
    low, high = (job.keys for job in search_jobs(make_sweep(), tmp_path))
    assert (low["learning_rate"], low["lora_r"], low["warmup_steps"], low["weight_decay"]) == (1e-5, 8, 0, 0.1)
    assert (high["learning_rate"], high["lora_r"], high["warmup_steps"]) == (1e-3, 16, 9)


def finish(search: Search, job, f1: float) -> None:
    """Write what a finished run leaves."""
    (job.folder / "eval").mkdir(parents=True, exist_ok=True)
    job.final.mkdir()
    (job.final / "grounding.json").write_text("{}")
    metrics = {"AP": f1, "AP50": f1, "matching": {"f1": f1, "mean_iou_gt": f1}, "provenance": {"split": "validation"}}
    (job.folder / "eval" / "metrics.json").write_text(json.dumps(metrics))
    search.finished(job, failed=False)


def evaluate_at(job, step: int, f1: float) -> None:
    """Write the checkpoint of a run that has been evaluated once."""
    checkpoint = job.folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "eval_f1": f1}]}))


@has_optuna
def test_trials_are_made_until_there_are_enough_and_are_named_by_their_values(tmp_path):
    search = Search(make_sweep(), tmp_path, print)
    for f1 in (0.1, 0.4, 0.2, 0.3):
        job = search.take()
        assert 1e-5 <= job.keys["learning_rate"] <= 1e-3 and job.keys["lora_r"] in (8, 16)
        assert type(job.keys["warmup_steps"]) is int and job.keys["weight_decay"] == 0.1
        assert job.name == (
            f"learning_rate={job.keys['learning_rate']}-lora_r={job.keys['lora_r']}-warmup_steps={job.keys['warmup_steps']}-seed0"
        )
        finish(search, job, f1)
    assert search.take() is None and search.study.best_value == 0.4
    assert Search(make_sweep(), tmp_path, print).take() is None, "the search is kept"
    assert Search(make_sweep(trials=5), tmp_path, print).take() is not None


@has_optuna
def test_a_trial_below_the_median_is_stopped_and_not_counted_as_failed(tmp_path):
    search = Search(make_sweep(), tmp_path, print)
    good = search.take()
    assert not search.should_stop(good), "nothing is known yet"
    evaluate_at(good, 2, 0.9)
    assert not search.should_stop(good)
    finish(search, good, 0.9)
    bad = search.take()
    evaluate_at(bad, 2, 0.1)
    assert search.should_stop(bad)
    search.finished(bad, failed=False)
    assert [trial.state.name for trial in search.study.get_trials()] == ["COMPLETE", "PRUNED"]


@has_optuna
def test_an_interrupted_trial_is_proposed_again_in_the_same_folder(tmp_path):
    job = Search(make_sweep(), tmp_path, print).take()
    assert Search(make_sweep(), tmp_path, print).take() == job


@has_optuna
def test_after_a_failed_trial_no_other_is_started(tmp_path):
    search = Search(make_sweep(), tmp_path, print)
    search.finished(search.take(), failed=True)
    assert search.take() is None
