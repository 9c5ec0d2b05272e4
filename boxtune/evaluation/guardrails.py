"""--guardrails: measure a guardrail suite, write guardrails.json, and print its tables."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from boxtune.answers.responses import Response
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import reading
from boxtune.common.files import write_whole
from boxtune.common.json_lines import to_json_line
from boxtune.evaluation.split import Split
from boxtune.inference.detector import Detector
from boxtune.inference.guardrail_suite import DEFAULT_SUITE, Suite, read_suite
from boxtune.inference.guardrails import run_base_guardrails, run_guardrails
from boxtune.inference.probes.subject import Answers, has_base
from boxtune.metrics.guardrail_rules import FILE_NAME, Probe, promotion_problems, write_guardrails
from boxtune.reports.guardrail_table import domain_rows, probe_rows

OF_RECIPE = "recipe"
ANSWERS_FILE = "guardrail_answers.jsonl"


def choose_suite(name: str | None, ckpt: str) -> Suite | None:
    """The suite called `name`, the one that the checkpoint's recipe names if that is "recipe", or None for no suite."""
    if name == OF_RECIPE:
        path = Path(ckpt) / "recipe.yaml"
        with reading(str(path), "Name a suite instead: --guardrails small."):
            name = yaml.safe_load(path.read_text(encoding="utf-8")).get("final_guardrails", DEFAULT_SUITE)
    return read_suite(name) if name else None


def measure_guardrails(detector: Detector, suite: Suite, split: Split, out: Path, batch_size: int) -> dict[str, Probe]:
    """The results of the suite on images of the split, compared with the base of an adapter.

    They are also written to `out`/guardrails.json, and all answers to `out`/guardrail_answers.jsonl.
    """
    began = time.perf_counter()
    checkpoint, model = detector.checkpoint, detector.model
    grounding = dataclasses.replace(detector.grounding(), classes=split.asked)
    collator = DetectionCollator(checkpoint.processor, grounding, split.data_dir)
    asked, base_answers, answers = (suite, split.records, batch_size), {}, {}
    baseline = run_base_guardrails(model, collator, *asked, base_answers) if has_base(model) else None
    probes = run_guardrails(model, collator, *asked, baseline, base_answers, answers)
    write_guardrails(out / FILE_NAME, probes)
    lines = [*_lines("base", base_answers), *_lines("model", answers)]
    write_whole(out / ANSWERS_FILE, "".join(map(to_json_line, lines)))
    print(f"guardrails: {time.perf_counter() - began:.0f} seconds", file=sys.stderr)
    return probes


def _lines(model: str, answers: Answers) -> Iterator[dict[str, Any]]:
    """A line for each answer. Predictions of boxes are lines as in predictions.jsonl."""
    for (kind, name), answer in answers.items():
        start = {"model": model, "kind": kind, "id": name}
        if isinstance(answer, dict):
            yield start | answer
        elif isinstance(answer, Response):
            yield start | {"text": answer.text, "cut": answer.cut}
        else:
            yield start | {"said": {True: "yes", False: "no", None: None}[answer]}


def print_guardrails(probes: dict[str, Probe], out: Path) -> None:
    """The probes, the table of images and prompts, and whether the model may be promoted."""
    console = Console()
    console.print(probe_table(probes))
    if domains := domain_table(probes):
        console.print(domains)
    problems = promotion_problems(probes)
    print(
        "\n".join([f"merge_adapter.py --require-guardrails would refuse: {problem}" for problem in problems])
        or "guardrails: passed"
    )
    print(f"guardrails: {out / FILE_NAME}\nanswers:    {out / ANSWERS_FILE}")


def probe_table(probes: dict[str, Probe]) -> Table:
    table = Table("probe", "base", "tuned", "change", "n", "")
    for row in probe_rows(probes):
        table.add_row(row.name, row.base, row.tuned, row.change, str(row.n), row.verdict)
    return table


def domain_table(probes: dict[str, Probe]) -> Table | None:
    """Share of responses with boxes, of the base → of the tuned model, by image and prompt. None if it was not measured."""
    if not (rows := domain_rows(probes)):
        return None
    table = Table("responses with boxes", "asked for boxes", "asked for a description")
    for row in rows:
        table.add_row(*row)
    return table
