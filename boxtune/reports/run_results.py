"""The results of a sweep's runs, read from their folders: metrics, guardrails, placement and trained weights."""

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from boxtune.common.errors import UserError, reading
from boxtune.common.numbers import format_ranges
from boxtune.metrics.guardrail_rules import FILE_NAME, Probe, read_guardrails

# {metric of the task: its path in metrics.json}
METRICS = {
    "AP": ("AP",),
    "AP50": ("AP50",),
    "f1": ("matching", "f1"),
    "mean_iou_gt": ("matching", "mean_iou_gt"),
}
# Of the interval around a mean over seeds.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedResult:
    """One run with one seed. metrics: {name in METRICS: value}; None where it is undefined. probes: of guardrails.json."""

    seed: int
    metrics: dict[str, float | None]
    probes: dict[str, Probe]


@dataclass(frozen=True)
class RunResult:
    """A run with all its seeds. placement: the layers that LoRA adapts, for people. trainable: number of trained weights.

    is_base: nothing is trained.
    """

    name: str
    placement: str
    trainable: int
    seeds: tuple[SeedResult, ...]

    @property
    def is_base(self) -> bool:
        return self.trainable == 0

    def metric(self, name: str) -> list[float]:
        """The values of the seeds in which the metric is defined."""
        return [value for seed in self.seeds if (value := seed.metrics[name]) is not None]

    def probe(self, name: str) -> list[float]:
        return [value for seed in self.seeds if (value := _value(seed.probes.get(name))) is not None]

    def baselines(self, name: str) -> list[float]:
        """The values of the same probe that the evaluations measured for the base."""
        probes = [seed.probes.get(name) for seed in self.seeds]
        return [probe.baseline for probe in probes if probe is not None and probe.baseline is not None]


def _value(probe: Probe | None) -> float | None:
    return None if probe is None else probe.value


def mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % interval of the mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


# ---- reading -------------------------------------------------------------------------------------------------------------


def read_results(folder: Path) -> list[RunResult]:
    """The runs below a sweep's folder that have been evaluated, by name. Raises UserError if there are none."""
    seeds: dict[str, list[tuple[Path, SeedResult]]] = {}
    for path in sorted(folder.glob("*/eval/metrics.json")):
        run = path.parent.parent
        found = re.fullmatch(r"(.+)-seed(\d+)", run.name)
        name, seed = (found[1], int(found[2])) if found else (run.name, 0)
        seeds.setdefault(name, []).append((run, _read_seed(path.parent, seed)))
    if not seeds:
        raise UserError(f"{folder} has no evaluated run (RUN-seedN/eval/metrics.json). Run the sweep first.")
    return [_combine(name, entries) for name, entries in seeds.items()]


def _read_seed(evaluation: Path, seed: int) -> SeedResult:
    guardrails = evaluation / FILE_NAME
    return SeedResult(seed, read_metrics(evaluation), read_guardrails(guardrails) if guardrails.is_file() else {})


def read_metrics(evaluation: Path) -> dict[str, float | None]:
    """{name in METRICS: value} of an evaluation."""
    metrics = _read_json(evaluation / "metrics.json")
    return {name: _at(metrics, path) for name, path in METRICS.items()}


def _at(metrics: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        metrics = metrics[key]
    return None if metrics is None else float(metrics)


def _combine(name: str, entries: list[tuple[Path, SeedResult]]) -> RunResult:
    info = _read_json(entries[0][0] / "run.json")
    results = sorted((result for _, result in entries), key=lambda result: result.seed)
    return RunResult(name, describe_placement(info["modules"]), info["parameters"]["trainable"], tuple(results))


def describe_placement(modules: dict[str, Any]) -> str:
    """ "LLM 34-35, vision 20-23, merger whole" from the `modules` of run.json."""
    layers = modules["layers"]

    def numbers(tower: str) -> str:
        return format_ranges(sorted({number for part in layers if part.startswith(tower) for number in layers[part]}))

    parts = [
        f"{title} {text}" for title, tower in (("LLM", "language"), ("vision", "vision")) if (text := numbers(tower))
    ]
    parts += ["merger"] if modules["adapted"].get("merger") else []
    parts += [f"{path.rpartition('visual.')[2]} whole" for path in modules["whole"]]
    return ", ".join(parts) or "none"


def _read_json(path: Path) -> dict[str, Any]:
    with reading(str(path), "Delete the run's folder and make it again."):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


# ---- comparing -----------------------------------------------------------------------------------------------------------


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other is at least as good as in both coordinates and better in one; higher is better."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]
