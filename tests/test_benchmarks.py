"""The benchmark's own arithmetic, and that every experiment can be started."""

import itertools

import numpy as np
import pytest
from conftest import make_record

from benchmarks import results
from benchmarks.bootstrap import intervals
from benchmarks.folds import write_folds
from benchmarks.plan import DATA_SETS, EXPERIMENTS, SEEDS
from benchmarks.run import identity, summary
from boxtune.recipe import load_recipe
from boxtune.records import read_info, read_records


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_recipe_that_loads(name):
    experiment = EXPERIMENTS[name]
    assert load_recipe(["--config", experiment.recipe, *experiment.options]).name == experiment.recipe


def test_a_result_belongs_to_its_recipe_options_and_seed():
    every = [identity(experiment, seed) for experiment in EXPERIMENTS.values() for seed in SEEDS]
    assert len(set(every)) == len(every)
    assert identity(EXPERIMENTS["nutrition"], 0) == identity(EXPERIMENTS["nutrition"], 0)


def test_folds_leave_each_picture_out_once(squares, tmp_path):
    folds = write_folds(squares, tmp_path, 5)
    everything = {record["id"] for split in ("train", "validation", "test") for record in read_records(squares, split)}
    left_out = [[record["id"] for record in read_records(fold, "test")] for fold in folds]
    assert sorted(itertools.chain(*left_out)) == sorted(everything)
    assert max(map(len, left_out)) - min(map(len, left_out)) <= 1
    for fold, test in zip(folds, left_out, strict=True):
        assert {record["id"] for record in read_records(fold, "train")} == everything - set(test)
        assert read_info(fold)["classes"] == read_info(squares)["classes"]
    again = write_folds(squares, tmp_path, 5)
    assert [[record["id"] for record in read_records(fold, "test")] for fold in again] == left_out


def test_intervals_hold_the_normal_approximation():
    """400 pictures of one box each, hit or missed: F1 is the hit rate, whose standard error is known."""
    hit = (np.random.default_rng(1).random(400) < 0.7).astype(float).tolist()
    miss = [1 - value for value in hit]
    run = {"tp": hit, "fp": miss, "fn": miss, "iou": hit, "truth": [1] * 400}
    rate = sum(hit) / 400
    half = 1.96 * (rate * (1 - rate) / 400) ** 0.5
    for low, high in intervals([run]).values():
        assert low == pytest.approx(rate - half, abs=0.006)  # 2,000 draws: the quantiles err by about 0.002
        assert high == pytest.approx(rate + half, abs=0.006)
    assert intervals([run]) == intervals([run, run])


def fake_result(experiment: str, seed: int) -> dict:
    records = [make_record("a", "a.png", 100, 100, [([0, 0, 50, 50], "cat"), ([60, 60, 90, 90], "dog")])]
    hit = {"id": "a", "objects": {"bbox": [[0, 0, 50, 50]], "category": ["cat"], "score": [1.0]}, "problems": []}
    return {
        "experiment": experiment,
        "seed": seed,
        "identity": f"{experiment}/{seed}",
        "tuned": summary(records, [hit], ["cat", "dog"]),
        "base": None,
        "seconds": {"training": 12, "evaluation": 3},
        "peak_mib": 512,
        "device": "CPU",
        "versions": dict.fromkeys(("torch", "transformers", "trl", "peft", "bitsandbytes"), "1"),
    }


def test_the_page_shows_what_was_measured_and_nothing_else(tmp_path, monkeypatch):
    name = DATA_SETS.experiments[1].name
    measured = [fake_result(name, seed) for seed in SEEDS] + [fake_result(DATA_SETS.experiments[0].name, 0)]
    monkeypatch.setattr(results, "read_results", lambda: measured)
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    results.write_page({f"{name}/{seed}" for seed in SEEDS})  # the last one is of a recipe that has changed
    page = (tmp_path / "results.md").read_text()
    first, second = (
        next(line for line in page.splitlines() if line.startswith(f"| {experiment.title} |"))
        for experiment in DATA_SETS.experiments[:2]
    )
    assert set(first.removeprefix(f"| {DATA_SETS.experiments[0].title}")) <= {"|", " "}
    assert "| 1 |  | 0.667 ± 0.000 | 0.667 to 0.667 |  | 0.500 ± 0.000 |" in second
    assert "| cat | 1 |  | 1.000 ± 0.000 |" in page
    assert "| dog | 1 |  | 0.000 ± 0.000 |" in page
