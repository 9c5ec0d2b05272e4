"""Guardrail probes as rows for the report and the model card: the base against the tuned model."""

from dataclasses import dataclass

from boxtune.common.numbers import format_difference, format_number
from boxtune.metrics.guardrail_rules import DOMAINS, HIGHER, LOWER, PROBES, Probes

# Changes below this are called equal: one answer more or less, of the ten or so that a small suite asks.
NOTICEABLE = 0.1


@dataclass(frozen=True)
class Row:
    """verdict: "better", "worse" or "" for a change that is small, unknown or neither."""

    name: str
    meaning: str
    base: str
    tuned: str
    change: str
    n: int
    verdict: str


def probe_rows(probes: Probes) -> list[Row]:
    """The probes that were measured, without the table of images and prompts."""
    return [
        Row(
            name,
            meaning,
            format_number(probes[name].baseline),
            format_number(probes[name].value),
            format_difference(probes[name].baseline, probes[name].value),
            probes[name].n,
            _verdict(name, probes[name].baseline, probes[name].value),
        )
        for name, meaning in PROBES.items()
        if name in probes
    ]


def domain_rows(probes: Probes) -> list[list[str]]:
    """[image, asked for boxes, asked for a description]: shares of responses with boxes, of base → tuned model. Empty if they
    were not measured."""
    if not probes.keys() & DOMAINS:
        return []
    rows = []
    for title, image in (("own images", "in"), ("unrelated images", "out")):
        cells = [probes[f"boxes_{image}_{prompt}"] for prompt in ("in", "out")]
        rows.append([title, *(f"{format_number(cell.baseline)} → {format_number(cell.value)}" for cell in cells)])
    return rows


def _verdict(name: str, base: float | None, tuned: float | None) -> str:
    if base is None or tuned is None or abs(tuned - base) < NOTICEABLE:
        return ""
    if name in HIGHER:
        return "better" if tuned > base else "worse"
    if name in LOWER:
        return "better" if tuned < base else "worse"
    return ""
