"""A search for recipe keys with Optuna (TPE): trials that are worse than the median of earlier ones are stopped while they train.

    search:
      trials: 20
      metric: f1                       # of evaluate.py on the sweep's split, maximised
      prune_by: eval_f1                # logged at every evaluation while training
      keys:
        learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
        lora_r: [8, 16, 32]

Trials are kept in runs/SWEEP/search.db, so the same command continues the search.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.reports.run_results import METRICS, read_metrics
from boxtune.sweeps.jobs import Job, is_finished, make_jobs, newest_state
from boxtune.sweeps.sweep_file import Run, Sweep, short

KEYS = ("trials", "metric", "prune_by", "keys", "startup_trials")
RANGE_KEYS = {"low", "high", "log"}
INSTALL = 'pip install --constraint constraints.txt --editable ".[search]"'


def check_search(search: dict[str, Any] | None) -> None:
    """Raises UserError that lists all problems of a search, and one if Optuna is not installed."""
    if search is None:
        return
    problems = [f"{key!r} is not one of {', '.join(KEYS)}" for key in search if key not in KEYS]
    if not isinstance(search.get("trials"), int) or search["trials"] < 1:
        problems.append("trials: give a whole number, 1 or more")
    if search.get("metric", "f1") not in METRICS:
        problems.append(f"metric: {search['metric']!r} must be one of {', '.join(METRICS)}")
    keys = search.get("keys")
    if not isinstance(keys, dict) or not keys:
        problems.append("keys: name at least one recipe key")
    else:
        problems += [f"keys: {name}: {problem}" for name, value in keys.items() if (problem := _range_problem(value))]
    if problems:
        raise UserError("search:", problems)
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"search: needs Optuna, which is not installed: {INSTALL}")


def _range_problem(value: object) -> str | None:
    if isinstance(value, list):
        return None if value else "the list is empty"
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= RANGE_KEYS:
        return f"{value!r} must be a list of values, or {{low: NUMBER, high: NUMBER, log: true}}"
    if not all(isinstance(value[end], int | float) for end in ("low", "high")) or value["low"] >= value["high"]:
        return f"{value!r} needs numbers with low < high (YAML reads 1e-4 as text; write 1.0e-4)"
    return "log needs low > 0" if value.get("log") and value["low"] <= 0 else None


def search_jobs(sweep: Sweep, out: Path) -> list[Job]:
    """Jobs with the first and the last value of every key, to check them as those of other sweeps are."""
    keys = (sweep.search or {})["keys"]
    corners = [
        {name: value[end] if isinstance(value, list) else value[("low", "high")[end]] for name, value in keys.items()}
        for end in (0, -1)
    ]
    runs = [Run(f"corner{i}", sweep.keys | corner, False) for i, corner in enumerate(corners)]
    return make_jobs(sweep, runs, 1, out)


class Search:
    """A queue of trials that Optuna proposes. A trial is stopped early if its in-training metric is below the median."""

    def __init__(self, sweep: Sweep, out: Path, say: Callable[[str], None]):
        import optuna  # an optional package

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.states = optuna.trial.TrialState
        self.sweep, self.out, self.say = sweep, out, say
        self.search: dict[str, Any] = sweep.search or {}
        startup = self.search.get("startup_trials", 5)
        self.study = optuna.create_study(
            storage=f"sqlite:///{out / 'search.db'}",
            study_name=sweep.name,
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=startup),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=startup),
        )
        # An interruption leaves trials open. They are proposed again: the same values are in the same folder, so they resume.
        for trial in self.study.get_trials(states=(self.states.RUNNING,)):
            self.study.tell(trial.number, state=self.states.FAIL)
            self.study.enqueue_trial(trial.params)
        self.trials: dict[str, Any] = {}
        self.failed = False  # then no new trials: what is wrong with one is likely to be wrong with the next
        self.reported: dict[str, int] = {}  # {name of a job: last step whose metric Optuna knows}

    def take(self) -> Job | None:
        ended = (self.states.COMPLETE, self.states.PRUNED)
        if len(self.study.get_trials(states=ended)) + len(self.trials) >= self.search["trials"] or self.failed:
            return None
        trial = self.study.ask()
        keys = {name: self._suggest(trial, name, value) for name, value in self.search["keys"].items()}
        run = Run("-".join(f"{name}={short(value)}" for name, value in keys.items()), self.sweep.keys | keys, False)
        [job] = make_jobs(self.sweep, [run], 1, self.out)
        self.trials[job.name], self.reported[job.name] = trial, 0
        return job

    def _suggest(self, trial: Any, name: str, value: Any) -> Any:
        """A float is rounded to three digits, so that the name of the folder says all of it."""
        if isinstance(value, list):
            return trial.suggest_categorical(name, value)
        if isinstance(value["low"], int) and isinstance(value["high"], int):
            return trial.suggest_int(name, value["low"], value["high"], log=value.get("log", False))
        return float(f"{trial.suggest_float(name, value['low'], value['high'], log=value.get('log', False)):.3g}")

    def should_stop(self, job: Job) -> bool:
        """Whether the last evaluation of a job in training is worse than the median of earlier trials at the same step."""
        key = self.search.get("prune_by")
        state = newest_state(job.folder) if key else None
        if state is None:
            return False
        trial = self.trials[job.name]
        try:
            history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
        except json.JSONDecodeError:  # the run is writing it at this moment
            return False
        for entry in history:
            if key in entry and entry["step"] > self.reported[job.name]:
                trial.report(-entry[key] if key.endswith("loss") else entry[key], entry["step"])
                self.reported[job.name] = entry["step"]
        return bool(trial.should_prune())

    def finished(self, job: Job, failed: bool) -> None:
        trial = self.trials.pop(job.name)
        self.failed |= failed
        if failed or not is_finished(self.sweep, job):
            self.study.tell(trial, state=self.states.FAIL if failed else self.states.PRUNED)
        else:
            value = read_metrics(job.folder / "eval")[self.search.get("metric", "f1")]
            self.study.tell(trial, 0.0 if value is None else value)
