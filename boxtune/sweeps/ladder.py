"""Runs one after another, such as ranks 8 → 16 → 32, going on only while validation says underfit.

The rule: after a rung, the next one is made if both hold, each as a mean over seeds.
1. The rung underfits: its last eval_loss exceeds its last training loss by at most `max_gap`. A larger gap means that the rung
   has weights enough to learn its training images by heart.
2. The rung was worth it: its best eval_loss is at least `min_gain` below that of the rung before. The first has none before it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from boxtune.common.errors import UserError, reading
from boxtune.common.files import write_whole
from boxtune.sweeps.jobs import Job, newest_state

DEFAULTS = {"max_gap": 0.06, "min_gain": 0.01}
FILE_NAME = "ladder.json"


class Losses(NamedTuple):
    """Of one rung. train: mean loss of the steps since the evaluation before the last. last, best: eval_loss."""

    train: float
    last: float
    best: float


def check_ladder(ladder: dict[str, float]) -> None:
    wrong = [key for key, value in ladder.items() if key not in DEFAULTS or not isinstance(value, int | float)]
    if wrong:
        raise UserError(f"ladder: {', '.join(map(str, wrong))} must be a number named {' or '.join(DEFAULTS)}.")


def read_losses(folder: Path) -> Losses:
    """The losses of a finished run, from its last checkpoint. Raises UserError if it was never evaluated."""
    state = newest_state(folder)
    if state is None:
        raise UserError(f"{folder} has no checkpoint whose losses could be read; keep at least one (save_strategy).")
    with reading(str(state), "Delete the run's folder and make it again."):
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if not evaluations:
        raise UserError(f"{folder} logs no eval_loss, by which the ladder decides; set eval_strategy and eval_steps.")
    start = evaluations[-2][0] if len(evaluations) > 1 else 0
    since = [entry["loss"] for entry in history if "loss" in entry and entry["step"] > start]
    if not since:
        raise UserError(f"{folder} logs no loss between its last two evaluations; lower logging_steps.")
    losses = [loss for _, loss in evaluations]
    return Losses(fmean(since), losses[-1], min(losses))


def decide(now: Losses, before: Losses | None, max_gap: float, min_gain: float) -> tuple[bool, str]:
    """(whether to go on, the reason with its figures)."""
    gap = now.last - now.train
    underfit = f"eval_loss {now.last:.4f} − loss {now.train:.4f} = {gap:.4f}"
    if gap > max_gap:
        return False, f"{underfit} is above {max_gap:g}, so it does not underfit"
    if before is None:
        return True, f"{underfit} is at most {max_gap:g}, so it underfits"
    gain = before.best - now.best
    if gain < min_gain:
        return (
            False,
            f"eval_loss fell by {gain:.4f} to {now.best:.4f}, less than {min_gain:g}, so more does not help",
        )
    return True, f"{underfit} is at most {max_gap:g}, and eval_loss fell by {gain:.4f}, at least {min_gain:g}"


class Ladder:
    """A queue whose rungs are the runs of a sweep, in their order. Decisions are printed, and kept in ladder.json."""

    def __init__(self, jobs: list[Job], ladder: dict[str, float], out: Path, say: Callable[[str], None]):
        names = list(dict.fromkeys(job.run.name for job in jobs))
        self.rungs = [[job for job in jobs if job.run.name == name] for name in names]
        self.limits = DEFAULTS | ladder
        self.out, self.say = out, say
        self.waiting = self.rungs.pop(0)
        self.current = list(self.waiting)
        self.left = len(self.current)
        self.failed = False
        self.before: Losses | None = None
        self.decisions: list[dict] = []

    def take(self) -> Job | None:
        return self.waiting.pop(0) if self.waiting else None

    def should_stop(self, job: Job) -> bool:
        return False

    def finished(self, job: Job, failed: bool) -> None:
        self.left -= 1
        self.failed |= failed
        if self.left == 0 and not self.failed:  # without all seeds there is no mean to decide by
            self._climb()

    def _climb(self) -> None:
        name = self.current[0].run.name
        now = Losses(
            *(fmean(values) for values in zip(*(read_losses(job.folder) for job in self.current), strict=True))
        )
        goes_on, reason = decide(now, self.before, self.limits["max_gap"], self.limits["min_gain"])
        if goes_on and not self.rungs:
            goes_on, reason = False, f"it is the last run, and a further one may still help: {reason}"
        self.say(f"{name}: {'go on' if goes_on else 'stop'}: {reason}")
        self.decisions.append({"run": name, **now._asdict(), "goes_on": goes_on, "reason": reason})
        write_whole(self.out / FILE_NAME, json.dumps({**self.limits, "rungs": self.decisions}, indent=2) + "\n")
        self.before = now
        if goes_on:
            self.waiting = self.rungs.pop(0)
            self.current, self.left = list(self.waiting), len(self.waiting)
