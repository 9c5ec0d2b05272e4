"""The results of an evaluation: provenance, metrics.json, report.html, and what the terminal shows."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from boxtune.answers.grounding import Grounding
from boxtune.answers.predictions import Prediction
from boxtune.common.environment import versions
from boxtune.common.files import write_whole
from boxtune.common.garbage import collector_paused
from boxtune.evaluation.split import Split
from boxtune.metrics.average_precision import curves
from boxtune.metrics.guardrail_rules import Probes
from boxtune.metrics.scoring import score, share
from boxtune.reports.comparison import comparison_table
from boxtune.reports.report import write_report
from boxtune.reports.score_table import format_class_table, format_table


def checkpoint_provenance(args: argparse.Namespace, grounding: Grounding, split: Split) -> dict[str, Any]:
    """What the metrics of a checkpoint were measured on and with."""
    return {
        "split": split.name,
        "limit": args.limit,
        "data": str(split.data_dir),
        "checkpoint": args.ckpt,
        "pixel_budget": {"min_pixels": grounding.min_pixels, "max_pixels": grounding.max_pixels},
        "base_model": grounding.base_model,
        # A server does not report its precision.
        "base_precision": None if args.server else args.precision or grounding.base_precision,
        "server": args.server,
        "max_new_tokens": grounding.max_new_tokens,
        "decoding": grounding.decoding.to_json(),
        "versions": versions(),
    }


def predictions_provenance(args: argparse.Namespace, path: Path, split: Split, missing: list[str]) -> dict[str, Any]:
    """What the metrics of earlier predictions were computed from."""
    return {
        "split": split.name,
        "data": str(split.data_dir),
        "predictions": str(path),
        "missing": len(missing),
        "reparse": args.reparse,
        "score": args.score,
    }


@collector_paused()
def write_results(
    out: Path,
    split: Split,
    predictions: list[Prediction],
    provenance: dict[str, Any],
    title: str,
    baseline: dict[str, Any] | None = None,
    absent: dict[str, Any] | None = None,
    probes: Probes | None = None,
) -> dict[str, Any]:
    """Write metrics.json and report.html to `out`; returns the metrics.

    baseline: the metrics of the base model. absent: the result of absent.ask_absent. probes: guardrails, for the report.
    """
    shared = share(split.records, predictions, split.classes)
    metrics = score(split.records, predictions, split.classes, provenance=provenance, shared=shared, absent=absent)
    write_whole(out / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    write_report(
        out / "report.html",
        split.records,
        predictions,
        metrics,
        curves(split.records, predictions, split.classes, shared.boxes),
        split.data_dir,
        title,
        baseline_metrics=baseline,
        shared=shared,
        probes=probes,
    )
    return metrics


def write_base_results(
    out: Path, split: Split, predictions: list[Prediction], provenance: dict[str, Any]
) -> dict[str, Any]:
    """`write_results` for an adapter's base; `provenance` is that of the adapter."""
    base = provenance["base_model"]
    return write_results(out, split, predictions, provenance | {"checkpoint": base}, f"{base} (base)")


def print_results(runs: dict[str, dict[str, Any]], out: Path, as_json: bool) -> None:
    """The metrics of every run by its name: as JSON, or as tables and the paths of the files in `out`."""
    if as_json:
        print(json.dumps(runs))  # in ASCII, because a label may hold characters that the terminal cannot encode
        return
    console = Console()
    console.print(format_table(runs))
    console.print(format_class_table(runs))
    print(f"metrics: {out / 'metrics.json'}\nreport:  {out / 'report.html'}")


def print_comparison(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """A comparison as JSON, or as a table and the paths of the files in `out`."""
    if as_json:
        print(json.dumps(result))
        return
    print(f"A: {result['A']}\nB: {result['B']}")
    Console().print(comparison_table(result))
    print("images: B wins {won}, loses {lost}, ties {tied}".format(**result["outcome"]))
    print(f"numbers: {out / 'comparison.json'}\npage:    {out / 'comparison.html'}")


def print_images_summary(predictions: list[Prediction], out: Path) -> None:
    """How many objects were found in images without ground truth, and the paths of the files in `out`."""
    objects = sum(len(prediction["objects"]["category"]) for prediction in predictions)
    print(f"images: {len(predictions)}, objects: {objects}")
    print(f"predictions: {out / 'predictions.jsonl'}\nannotated:   {out / 'pictures'}")


def warn_of_missing(missing: list[str], split: Split) -> None:
    if missing:
        count = len(split.records)
        print(f"warning: {len(missing)} of {count} images have no prediction and count as empty", file=sys.stderr)


def print_notes(lines: list[str]) -> None:
    """To stderr, because with --json stdout holds nothing but the metrics."""
    print("\n".join(lines), file=sys.stderr)
