"""--guardrails: measure a guardrail suite, write guardrails.json, and print its tables."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from boxtune.answers.responses import Response
from boxtune.batching.collator import DetectionCollator
from boxtune.common.files import write_whole
from boxtune.common.json_lines import to_json_line
from boxtune.common.numbers import format_number
from boxtune.evaluation.split import Split
from boxtune.inference.detector import Detector
from boxtune.inference.guardrail_suite import Suite
from boxtune.inference.guardrails import run_base_guardrails, run_guardrails
from boxtune.inference.probes.subject import Answers, has_base
from boxtune.metrics.guardrail_rules import DOMAINS, FILE_NAME, Probe, promotion_problems, write_guardrails

ANSWERS_FILE = "guardrail_answers.jsonl"


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
    print("\n".join([f"not to be promoted: {problem}" for problem in problems]) or "guardrails: passed")
    print(f"guardrails: {out / FILE_NAME}\nanswers:    {out / ANSWERS_FILE}")


def probe_table(probes: dict[str, Probe]) -> Table:
    table = Table("probe", "base", "tuned", "n")
    for name, probe in probes.items():
        if name not in DOMAINS:
            table.add_row(name, format_number(probe.baseline), format_number(probe.value), str(probe.n))
    return table


def domain_table(probes: dict[str, Probe]) -> Table | None:
    """Share of responses with boxes, of the base → of the tuned model, by image and prompt. None if it was not measured."""
    if not probes.keys() & DOMAINS:
        return None
    table = Table("responses with boxes", "asked for boxes", "asked for a description")
    for title, image in (("own images", "in"), ("unrelated images", "out")):
        cells = [probes[f"boxes_{image}_{prompt}"] for prompt in ("in", "out")]
        table.add_row(title, *(f"{format_number(cell.baseline)} → {format_number(cell.value)}" for cell in cells))
    return table
