"""A sweep: a YAML file that names runs of one recipe by the keys in which they differ."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError, did_you_mean
from boxtune.data.records import SPLITS
from boxtune.metrics.guardrail_rules import HIGHER, LOWER
from boxtune.reports.run_results import METRICS
from boxtune.training.recipe import RECIPES, find_recipe, read_yaml

SWEEPS = RECIPES / "sweeps"
# The key of a run in which nothing is trained.
BASE = "base"
# Names of runs become names of folders.
_NAME = re.compile(r"[A-Za-z0-9][\w.=-]*")

Keys = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    recipe, overlays: of every run. keys: recipe keys of every run. runs: {name: recipe keys of this run, or {base: true}}.
    grid: {recipe key: values}; every run is made once for each combination. first: names of the runs to begin with.
    seeds: number of seeds of each run. split, guardrails, evaluate_args: what evaluate.py is called with.
    launcher: a command with {command} in it, such as "srun --gres=gpu:1 {command}". parallel: runs at the same time; by default
    one for each GPU.
    metric, guardrail: the axes of the report. max_guardrail_loss: how much worse than the base a recommended run may be.
    ladder: the runs are made one after another, only while validation says underfit (ladder.py). search: an Optuna search for
    keys (search.py).
    """

    name: str
    recipe: str
    overlays: list[str] = field(default_factory=list)
    keys: Keys = field(default_factory=dict)
    runs: dict[str, Keys] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    seeds: int = 1
    split: str = "validation"
    guardrails: str | None = None
    evaluate_args: list[str] = field(default_factory=list)
    launcher: str | None = None
    parallel: int | None = None
    metric: str = "f1"
    guardrail: str = "irrelevant_pass_rate"
    max_guardrail_loss: float = 0.10
    ladder: dict[str, float] | None = None
    search: dict[str, Any] | None = None


@dataclass(frozen=True)
class Run:
    """A run of a sweep, for any number of seeds. keys: its recipe keys, those of the whole sweep included."""

    name: str
    keys: Keys
    is_base: bool


def read_sweep(name: str) -> Sweep:
    """The sweep in a file, given as a path or as a name in recipes/sweeps. Raises UserError that lists all problems."""
    path = find_recipe(name, SWEEPS)
    values = read_yaml(path)
    known = [field.name for field in dataclasses.fields(Sweep) if field.name != "name"]
    problems = [f"unknown key {key!r}{did_you_mean(str(key), known, '; did')}" for key in values if key not in known]
    problems += [] if "recipe" in values else ["recipe: name the recipe that the runs change"]
    problems += list(_shape_problems(values))
    if not problems:
        sweep = Sweep(path.stem, **values)
        problems = list(_value_problems(sweep))
    if problems:
        raise UserError(f"{path} cannot be used:", problems)
    return sweep


def _shape_problems(values: Mapping[str, Any]) -> list[str]:
    lists, mappings = ("overlays", "first", "evaluate_args"), ("keys", "runs", "grid", "ladder", "search")
    texts, numbers = ("recipe", "split", "guardrails", "launcher", "metric", "guardrail"), ("seeds", "parallel")
    shapes: dict[str, tuple[type | tuple[type, ...], str]] = {
        **dict.fromkeys(lists, (list, "a list")),
        **dict.fromkeys(mappings, (dict, "a mapping")),
        **dict.fromkeys(texts, (str, "text")),
        **dict.fromkeys(numbers, (int, "a whole number")),
        "max_guardrail_loss": ((int, float), "a number"),
    }
    problems = [
        f"{key}: {values[key]!r} must be {what}"
        for key, (kind, what) in shapes.items()
        if values.get(key) is not None and (not isinstance(values[key], kind) or isinstance(values[key], bool))
    ]
    for key, kind, what in (("runs", dict, "a mapping of recipe keys"), ("grid", list, "a list of values")):
        inner = values.get(key) if isinstance(values.get(key), dict) else {}
        problems += [
            f"{key}: {name}: {value!r} must be {what}" for name, value in inner.items() if not isinstance(value, kind)
        ]
    return problems


def _value_problems(sweep: Sweep) -> list[str]:
    probes = (*HIGHER, *LOWER)
    problems = []
    if sweep.split not in SPLITS:
        problems.append(f"split: {sweep.split!r} must be one of {', '.join(SPLITS)}")
    if sweep.split == "test":
        problems.append("split: a placement that is chosen on test has no test left; use validation")
    if sweep.seeds < 1 or (sweep.parallel is not None and sweep.parallel < 1):
        problems.append("seeds, parallel: must be at least 1")
    if sweep.metric not in METRICS:
        problems.append(f"metric: {sweep.metric!r} must be one of {', '.join(METRICS)}")
    if sweep.guardrail not in probes:
        problems.append(f"guardrail: {sweep.guardrail!r} must be one of {', '.join(probes)}")
    if sweep.launcher is not None and "{command}" not in sweep.launcher.split():
        problems.append(f"launcher: {sweep.launcher!r} needs the word {{command}}, in whose place the command is put")
    if sweep.search and (sweep.runs or sweep.grid or sweep.ladder):
        problems.append("search: chooses the keys itself; omit runs, grid and ladder")
    if not (sweep.runs or sweep.grid or sweep.search):
        problems.append("runs: name at least one run, or a grid")
    problems += [
        f"runs: {name!r} must be a name of a folder, without spaces"
        for name in sweep.runs
        if not _NAME.fullmatch(str(name))
    ]
    problems += [f"first: {name!r} is none of the runs" for name in sweep.first if name not in sweep.runs]
    for name, keys in sweep.runs.items():
        if BASE in keys and keys != {BASE: True}:
            problems.append(f"runs: {name}: a run with base: true trains nothing, so it has no other keys")
    return problems


def expand(sweep: Sweep, only: Sequence[str] = ()) -> list[Run]:
    """The runs, those that `first` names first. only: names of the runs to make; a name in `runs` means all of its grid.

    Raises UserError that lists the names that there are not.
    """
    if sweep.search:
        return []
    named: list[tuple[str, str, Keys]] = []  # (name in `runs`, name, keys)
    for name, keys in (sweep.runs or {"": {}}).items():
        if keys.get(BASE):
            named.append((name, name, keys))
            continue
        for values in itertools.product(*sweep.grid.values()):
            point = dict(zip(sweep.grid, values, strict=True))
            suffix = [f"{key}={short(value)}" for key, value in point.items()]
            named.append((name, "-".join([name, *suffix] if name else suffix), keys | point))
    if unknown := [word for word in only if word not in {name for pair in named for name in pair[:2]}]:
        raise UserError(f"--only: {', '.join(unknown)} is none of the runs: {', '.join(name for _, name, _ in named)}.")
    chosen = [entry for entry in named if not only or {*entry[:2]} & {*only}]
    chosen.sort(key=lambda entry: sweep.first.index(entry[0]) if entry[0] in sweep.first else len(sweep.first))
    return [
        Run(name, sweep.keys | keys, False) if not keys.get(BASE) else Run(name, sweep.keys, True)
        for _, name, keys in chosen
    ]


def short(value: object) -> str:
    """A value of the grid as a part of a folder's name: [34, 35] → 34+35."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)


def scripts_folder() -> Path:
    """The repository, where train_sft.py and evaluate.py are."""
    return RECIPES.parent
