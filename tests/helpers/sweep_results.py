"""Folders of evaluated runs, as a sweep leaves them."""

import json
from pathlib import Path
from typing import Any

from boxtune.metrics.guardrail_rules import Probe, write_guardrails


def write_run(
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    f1: float | None = 0.5,
    pass_rate: float | None = None,
    baseline: float | None = None,
    trainable: int = 1000,
    layers: dict[str, list[int]] | None = None,
    others: dict[str, Probe] | None = None,
) -> None:
    """A run with one seed. pass_rate: None writes no guardrails.json."""
    run = folder / f"{name}-seed{seed}"
    (run / "eval").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(run_info(trainable, layers or {})))
    metrics = {"AP": f1, "AP50": f1, "matching": {"f1": f1, "mean_iou_gt": f1}}
    (run / "eval" / "metrics.json").write_text(json.dumps(metrics))
    if pass_rate is not None:
        probes = {"irrelevant_pass_rate": Probe(pass_rate, 20, baseline), **(others or {})}
        write_guardrails(run / "eval" / "guardrails.json", probes)


def run_info(trainable: int, layers: dict[str, list[int]]) -> dict[str, Any]:
    modules = {"adapted": {}, "layers": layers, "whole": []}
    return {"modules": modules, "parameters": {"trainable": trainable, "all": 10**6}}
