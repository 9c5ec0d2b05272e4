"""A job: one run of a sweep with one seed, in its own folder. What it runs depends on what is there already."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boxtune.answers.grounding import FILE_NAME as GROUNDING_FILE
from boxtune.common.errors import reading
from boxtune.common.files import write_whole
from boxtune.metrics.guardrail_rules import FILE_NAME as GUARDRAILS_FILE
from boxtune.sweeps.sweep_file import Keys, Run, Sweep, scripts_folder
from boxtune.training.last_checkpoint import last_whole_checkpoint
from boxtune.training.recipe import Recipe, load_recipe
from boxtune.training.run_info import changed_keys

LOG = "sweep.log"


@dataclass(frozen=True)
class Job:
    """name: RUN-seedN. keys: the recipe keys that its own overlay holds."""

    name: str
    run: Run
    seed: int
    folder: Path
    keys: Keys

    @property
    def overlay(self) -> Path:
        """The file with its keys, which train_sft.py reads after the recipe and the overlays of the sweep."""
        return self.folder / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def final(self) -> Path:
        return self.folder / "final"


def make_jobs(sweep: Sweep, runs: list[Run], seeds: int, out: Path) -> list[Job]:
    """A job for each run and seed, the first seed of every run before the second. The base needs one seed only."""
    jobs = []
    for seed in range(seeds):
        for run in runs:
            if run.is_base and seed:
                continue
            name = f"{run.name}-seed{seed}"
            folder = out / name
            own = {"seed": seed, "output_dir": str(folder), "run_name": f"{sweep.name}/{name}"}
            jobs.append(Job(name, run, seed, folder, run.keys | own))
    return jobs


def recipe_words(sweep: Sweep, overlay: Path) -> list[str]:
    """The words of train_sft.py that name the recipe of a job."""
    return ["--config", sweep.recipe, "--overlay", ",".join([*sweep.overlays, str(overlay)])]


def write_overlay(job: Job, folder: Path) -> Path:
    path = folder / job.overlay.name
    write_whole(path, yaml.safe_dump(job.keys, allow_unicode=True, sort_keys=False))
    return path


def load_job_recipe(sweep: Sweep, job: Job, folder: Path) -> Recipe:
    """The recipe of a job; its overlay is written to `folder`. Raises UserError if it has keys or values that cannot be used."""
    return load_recipe(recipe_words(sweep, write_overlay(job, folder)), needs_gpu=False)


# ---- what is left to do --------------------------------------------------------------------------------------------------


def is_finished(sweep: Sweep, job: Job) -> bool:
    """Whether the job is trained and evaluated on the split and with the guardrails of the sweep."""
    metrics = job.folder / "eval" / "metrics.json"
    if not (job.final / GROUNDING_FILE).is_file() or not metrics.is_file():
        return False
    with reading(str(metrics), "Delete it to evaluate the run again."):
        split = json.loads(metrics.read_text(encoding="utf-8"))["provenance"]["split"]
    has_guardrails = sweep.guardrails is None or (job.folder / "eval" / GUARDRAILS_FILE).is_file()
    return bool(split == sweep.split and has_guardrails)


def conflict(job: Job, recipe: Recipe) -> str | None:
    """Why the run in the job's folder is another one; None if it is the same, or if there is none."""
    changed = [key for key in changed_keys(job.folder, recipe) if key != "hub_token"]
    if not changed:
        return None
    return (
        f"{job.name}: {job.folder} holds a run with another {', '.join(changed)}; delete the folder, or rename the run"
    )


def steps_of(sweep: Sweep, job: Job) -> list[tuple[str, list[str]]]:
    """(name, command) of what is left to do."""
    steps = []
    if not (job.final / GROUNDING_FILE).is_file():
        steps.append(
            ("base", _base_command(sweep, job)) if job.run.is_base else ("training", _train_command(sweep, job))
        )
    evaluate = ["evaluate.py", "--ckpt", str(job.final), "--split", sweep.split, "--out", str(job.folder / "eval")]
    if sweep.guardrails is not None:
        evaluate += ["--guardrails", sweep.guardrails]
    steps.append(("evaluation", _python(evaluate) + [str(word) for word in sweep.evaluate_args]))
    return steps


def _train_command(sweep: Sweep, job: Job) -> list[str]:
    command = _python(["train_sft.py", *recipe_words(sweep, job.overlay)])
    checkpoint, _ = last_whole_checkpoint(job.folder)
    if checkpoint is None:
        return command
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if state["global_step"] < state["max_steps"]:
        return [*command, "--resume_from_checkpoint", "true"]
    return [
        *command,
        "--overwrite_output_dir",
        "true",
    ]  # it ended before its final model was saved, and cannot be resumed


def newest_state(folder: Path) -> Path | None:
    """trainer_state.json of the newest checkpoint, whose other files are not checked; None if there is none."""
    states = {
        int(step): state
        for state in folder.glob("checkpoint-*/trainer_state.json")
        if (step := state.parent.name.removeprefix("checkpoint-")).isdecimal()
    }
    return states[max(states)] if states else None


def _base_command(sweep: Sweep, job: Job) -> list[str]:
    return [sys.executable, "-m", "boxtune.sweeps.base_run", *recipe_words(sweep, job.overlay)]


def _python(words: list[str]) -> list[str]:
    return [sys.executable, str(scripts_folder() / words[0]), *words[1:]]
