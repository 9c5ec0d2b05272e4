"""The ladder: the next run is made only while validation says underfit, and more was worth it."""

import json
from pathlib import Path

import pytest

from boxtune.common.errors import UserError
from boxtune.sweeps.jobs import make_jobs
from boxtune.sweeps.ladder import Ladder, Losses, check_ladder, decide, read_losses
from boxtune.sweeps.sweep_file import expand, read_sweep


@pytest.mark.parametrize(
    ("now", "before", "goes_on", "reason"),
    [
        (Losses(1.00, 1.05, 1.05), None, True, "eval_loss 1.0500 − loss 1.0000 = 0.0500 is at most 0.06"),
        (Losses(1.00, 1.07, 1.05), None, False, "eval_loss 1.0700 − loss 1.0000 = 0.0700 is above 0.06"),
        (Losses(1.00, 1.05, 1.05), Losses(1.1, 1.1, 1.07), True, "eval_loss fell by 0.0200, at least 0.01"),
        (
            Losses(1.00, 1.05, 1.05),
            Losses(1.1, 1.1, 1.055),
            False,
            "eval_loss fell by 0.0050 to 1.0500, less than 0.01",
        ),
        (Losses(1.20, 1.05, 1.05), Losses(1.1, 1.1, 1.0), False, "eval_loss fell by -0.0500"),
    ],
)
def test_the_rule(now, before, goes_on, reason):
    decision = decide(now, before, max_gap=0.06, min_gain=0.01)
    assert decision[0] is goes_on and reason in decision[1]


def write_history(folder: Path, *history: dict) -> None:
    checkpoint = folder / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": list(history)}))


def finish(job, train: float, evaluation: float) -> None:
    """A run whose training loss was higher before its first evaluation."""
    write_history(
        *(job.folder, {"step": 1, "loss": 9.0}, {"step": 2, "eval_loss": evaluation + 0.5}),
        *({"step": 3, "loss": train}, {"step": 4, "loss": train}, {"step": 4, "eval_loss": evaluation}),
    )


def test_losses_are_those_since_the_evaluation_before_the_last(tmp_path):
    write_history(
        *(tmp_path, {"step": 1, "loss": 9.0}, {"step": 2, "eval_loss": 1.0}),
        *({"step": 3, "loss": 0.8}, {"step": 4, "loss": 0.6}, {"step": 4, "eval_loss": 1.2}),
    )
    assert read_losses(tmp_path) == (pytest.approx(0.7), 1.2, 1.0)


@pytest.mark.parametrize(
    ("history", "problem"),
    [([{"step": 1, "loss": 1.0}], "logs no eval_loss"), ([{"step": 1, "eval_loss": 1.0}], "lower logging_steps")],
)
def test_runs_without_losses_are_reported(tmp_path, history, problem):
    write_history(tmp_path, *history)
    with pytest.raises(UserError, match=problem):
        read_losses(tmp_path)


def test_ranks_are_tried_until_more_does_not_help(tmp_path):
    sweep = read_sweep("rank_ladder")
    losses = {"r8": [(1.0, 1.0), (1.0, 1.04)], "r16": [(0.99, 1.0), (1.0, 1.03)], "r32": [(0.5, 0.5)] * 2}
    said: list[str] = []
    ladder = Ladder(make_jobs(sweep, expand(sweep), 2, tmp_path), sweep.ladder, tmp_path, said.append)
    given = []
    while True:
        together = [ladder.take(), ladder.take()]
        assert ladder.take() is None, "the next rank waits for both seeds of this one"
        if together == [None, None]:
            break
        given += [job.name for job in together]
        for job in together:
            finish(job, *losses[job.run.name][job.seed])
            ladder.finished(job, failed=False)
    assert given == ["r8-seed0", "r8-seed1", "r16-seed0", "r16-seed1"]
    assert said[0].startswith("r8: go on: eval_loss 1.0200 − loss 1.0000 = 0.0200")
    assert said[1].startswith("r16: stop: eval_loss fell by 0.0050 to 1.0150, less than 0.01")
    kept = json.loads((tmp_path / "ladder.json").read_text())
    assert [(rung["run"], rung["goes_on"]) for rung in kept["rungs"]] == [("r8", True), ("r16", False)]


def test_after_the_last_run_a_further_one_may_still_help(tmp_path):
    sweep = read_sweep("rank_ladder")
    said: list[str] = []
    ladder = Ladder(make_jobs(sweep, expand(sweep, ["r8"]), 1, tmp_path), sweep.ladder, tmp_path, said.append)
    job = ladder.take()
    finish(job, 1.0, 1.0)
    ladder.finished(job, failed=False)
    assert said[0].startswith("r8: stop: it is the last run, and a further one may still help: eval_loss 1.0000")


def test_a_failed_seed_ends_the_ladder(tmp_path):
    sweep = read_sweep("rank_ladder")
    ladder = Ladder(make_jobs(sweep, expand(sweep), 1, tmp_path), sweep.ladder, tmp_path, print)
    ladder.finished(ladder.take(), failed=True)
    assert ladder.take() is None and not (tmp_path / "ladder.json").exists()


def test_unknown_limits_are_refused():
    with pytest.raises(UserError, match="ladder: gap must be a number named max_gap or min_gain"):
        check_ladder({"gap": 1})
