"""Running jobs: finished ones skipped, failed ones reported, several at once, through a launcher. The commands are fake."""

import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from boxtune.sweeps.jobs import is_finished, make_jobs, steps_of
from boxtune.sweeps.running import JobList, places, print_failures, run_jobs
from boxtune.sweeps.sweep_file import Sweep, expand

# Stands for train_sft.py and evaluate.py: writes what they would, and fails in the run "bad".
FAKE = """
    import json, os, sys, time
    from pathlib import Path
    name, log, *words = sys.argv[1:]
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    with open(log, "a") as file:
        print(name, "evaluation" if out else "training", file=file)
    deadline = time.monotonic() + 60
    while any(line not in Path(log).read_text() for line in WAIT_FOR) and time.monotonic() < deadline:
        time.sleep(0.05)
    if name.startswith("bad"):
        print("first line")
        sys.exit("no such layer")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(json.dumps({"provenance": {"split": "validation"}}))
    else:
        folder = Path(words[words.index("--overlay") + 1]).parent
        (folder / "final").mkdir()
        (folder / "final" / "grounding.json").write_text("{}")
"""


def make_sweep(tmp_path: Path, *names: str, parallel: int = 1, wait_for: tuple[str, ...] = ()) -> Sweep:
    """wait_for: each command waits until these lines are among the calls."""
    script = tmp_path / "fake.py"
    script.write_text(textwrap.dedent(FAKE).replace("WAIT_FOR", repr(wait_for)))
    launcher = f"{sys.executable} {script} {{name}} {tmp_path / 'calls'} {{command}}"
    return Sweep("s", "tiny_nutrition_qlora", runs={name: {} for name in names}, launcher=launcher, parallel=parallel)


def calls(tmp_path: Path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "calls").read_text().splitlines()]


def test_a_failed_job_is_reported_without_losing_the_rest(tmp_path, capsys):
    sweep = make_sweep(tmp_path, "a", "bad", "c")
    jobs = make_jobs(sweep, expand(sweep), 1, tmp_path / "runs")
    failed = run_jobs(sweep, JobList(jobs), print)
    assert [job.name for job in failed] == ["bad-seed0"]
    assert calls(tmp_path) == [
        ["a-seed0", "training"],
        ["a-seed0", "evaluation"],
        ["bad-seed0", "training"],
        ["c-seed0", "training"],
        ["c-seed0", "evaluation"],
    ]
    said = capsys.readouterr().out
    assert "a-seed0: finished in" in said and "bad-seed0: training failed with exit code 1, log" in said
    print_failures(failed)
    shown = capsys.readouterr().err
    assert f"The last lines of {jobs[1].log}" in shown and "no such layer" in shown and "first line" in shown

    # Again: finished ones are skipped, and the failed one is tried again.
    run_jobs(sweep, JobList(jobs), print)
    assert [call[0] for call in calls(tmp_path)[5:]] == ["bad-seed0"]
    assert "a-seed0: finished already" in capsys.readouterr().out


def test_jobs_run_at_the_same_time_in_as_many_places_as_there_are(tmp_path):
    """The first two wait for each other, so one after the other they would never end in time."""
    sweep = make_sweep(tmp_path, "a", "b", "c", parallel=2, wait_for=("a-seed0 training", "b-seed0 training"))
    assert places(sweep) == ["0", "1"]
    began = time.monotonic()
    assert run_jobs(sweep, JobList(make_jobs(sweep, expand(sweep), 1, tmp_path / "runs")), print) == []
    assert time.monotonic() - began < 55
    order = [" ".join(call) for call in calls(tmp_path)]
    assert {*order[:2]} == {"a-seed0 training", "b-seed0 training"}
    evaluations = [order.index(f"{name}-seed0 evaluation") for name in ("a", "b")]
    assert order.index("c-seed0 training") > min(evaluations), "the third waits for a place"


def test_each_job_has_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    sweep = Sweep("s", "tiny_nutrition_qlora", runs={"a": {}})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert places(sweep) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-b")
    assert places(sweep) == ["4", "GPU-b"]


def test_an_evaluation_on_another_split_or_without_the_guardrails_is_made_again(tmp_path):
    sweep = make_sweep(tmp_path, "a")
    [job] = make_jobs(sweep, expand(sweep), 1, tmp_path / "runs")
    run_jobs(sweep, JobList([job]), print)
    assert is_finished(sweep, job)
    guarded = Sweep("s", "tiny_nutrition_qlora", runs={"a": {}}, guardrails="small")
    assert not is_finished(guarded, job)
    [(step, command)] = steps_of(guarded, job)
    assert step == "evaluation" and command[-2:] == ["--guardrails", "small"]
    other = Sweep("s", "tiny_nutrition_qlora", runs={"a": {}}, split="train")
    assert not is_finished(other, job)


@pytest.mark.parametrize(
    ("done", "words"), [(1, ["--resume_from_checkpoint", "true"]), (2, ["--overwrite_output_dir", "true"])]
)
def test_an_interrupted_run_resumes_and_one_without_final_model_starts_over(tmp_path, done, words):
    sweep = Sweep("s", "tiny_nutrition_qlora", runs={"a": {}})
    [job] = make_jobs(sweep, expand(sweep), 1, tmp_path)
    (step, command), evaluation = steps_of(sweep, job)
    assert step == "training" and words[0] not in command and evaluation[0] == "evaluation"
    checkpoint = job.folder / f"checkpoint-{done}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": done, "max_steps": 2}))
    (_, command), _ = steps_of(sweep, job)
    assert command[-2:] == words


def test_a_stop_signal_ends_the_running_jobs_and_leaves_the_rest(tmp_path, capsys):
    sweep = make_sweep(tmp_path, "a", "b", wait_for=("never",))
    jobs = make_jobs(sweep, expand(sweep), 1, tmp_path / "runs")
    began = time.monotonic()

    def stop_when_it_runs():
        while not (tmp_path / "calls").is_file() and time.monotonic() < began + 50:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_when_it_runs).start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(sweep, JobList(jobs), print)
    assert time.monotonic() - began < 55, "the job was stopped"
    assert "stopping 1 runs" in capsys.readouterr().out
    assert [call[0] for call in calls(tmp_path)] == ["a-seed0"]
    assert signal.getsignal(signal.SIGTERM) is before
