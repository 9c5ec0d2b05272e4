"""Which run of a sweep to use, by a rule.

Of the runs whose guardrail metric is at most `max_loss` worse than that of the base, the one with the best task metric; of those
within TIE of it, the one with the fewest trained weights. If none is left, or none is better than the base, the base is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from boxtune.metrics.guardrail_rules import LOWER
from boxtune.reports.run_results import RunResult, frontier, interval, mean

# Runs whose task metric is this close to the best are as good; then the smaller one is recommended.
TIE = 0.01
TITLES = {"AP": "AP", "AP50": "AP50", "f1": "F1", "mean_iou_gt": "mean IoU over all ground truth"}
# The axis if no guardrail was measured.
PARAMETERS = "trained weights"
NOTHING_TRAINED = "No recommendation: no trained run was evaluated."


@dataclass(frozen=True)
class Row:
    """A run in the report. metric, guardrail: means over its seeds. *_interval: None with one seed."""

    result: RunResult
    metric: float
    metric_interval: list[float] | None
    guardrail: float
    guardrail_interval: list[float] | None


@dataclass(frozen=True)
class Choice:
    """What the rule says. limit: the worst allowed guardrail metric; None if the base's is unknown."""

    recommended: RunResult | None
    limit: float | None
    sentence: str


def make_rows(results: Sequence[RunResult], metric: str, axis: str) -> list[Row]:
    """The runs in which both values are defined. axis: a guardrail probe, or PARAMETERS."""
    rows = []
    for result in results:
        values = result.metric(metric)
        others = [float(result.trainable)] if axis == PARAMETERS else result.probe(axis)
        height, across = mean(values), mean(others)
        if height is not None and across is not None:
            rows.append(Row(result, height, interval(values), across, interval(others)))
    return rows


def choose(rows: Sequence[Row], results: Sequence[RunResult], metric: str, guardrail: str, max_loss: float) -> Choice:
    """The recommendation by the rule."""
    if all(row.result.is_base for row in rows):
        return Choice(None, None, NOTHING_TRAINED)
    base = base_value(results, guardrail)
    if base is None:
        return Choice(
            None, None, f"No recommendation: {guardrail} of the base was not measured. Add a run with `base: true`."
        )
    sign = -1 if guardrail in LOWER else 1
    limit = base - sign * max_loss
    allowed = [row for row in rows if not row.result.is_base and sign * (row.guardrail - limit) >= -1e-9]
    if not allowed:
        return Choice(
            None,
            limit,
            f"Keep the base: {guardrail} of every run is worse than {limit:.3f} (base {base:.3f}, at most {max_loss:g} worse).",
        )
    best = _best(allowed)
    if reason := _not_better(best, rows, metric, "allowed run"):
        return Choice(None, limit, reason)
    return Choice(
        best.result,
        limit,
        f"Use {best.result.name} ({best.result.placement}): {TITLES[metric]} {best.metric:.3f} with {guardrail} "
        f"{best.guardrail:.3f} (base {base:.3f}), {best.result.trainable:,} trained weights.",
    )


def choose_by_metric(rows: Sequence[Row], metric: str) -> Choice:
    trained = [row for row in rows if not row.result.is_base]
    if not trained:
        return Choice(None, None, NOTHING_TRAINED)
    best = _best(trained)
    if reason := _not_better(best, rows, metric, "run"):
        return Choice(None, None, reason)
    return Choice(
        best.result,
        None,
        f"Use {best.result.name} ({best.result.placement}): {TITLES[metric]} {best.metric:.3f}, {best.result.trainable:,} "
        "trained weights. No guardrails were measured, so this says nothing about what was forgotten.",
    )


def _best(rows: Sequence[Row]) -> Row:
    best = max(row.metric for row in rows)
    close = [row for row in rows if row.metric >= best - TIE - 1e-9]
    return min(close, key=lambda row: (row.result.trainable, -row.metric))


def _not_better(best: Row, rows: Sequence[Row], metric: str, candidates: str) -> str | None:
    """Why the best of the candidates is not worth using, or None."""
    base_metric = next((row.metric for row in rows if row.result.is_base), None)
    if base_metric is not None and best.metric <= base_metric:
        return f"Keep the base: its {TITLES[metric]} of {base_metric:.3f} is not exceeded by any {candidates}."
    if best.metric == 0:
        return f"No recommendation: {TITLES[metric]} is 0 in every {candidates}."
    return None


def base_value(results: Sequence[RunResult], guardrail: str) -> float | None:
    """Of the run in which nothing is trained or, without one, what the evaluations of the others measured for their base."""
    own = [value for result in results if result.is_base for value in result.probe(guardrail)]
    return mean(own or [value for result in results for value in result.baselines(guardrail)])


def describe_rule(axis: str, metric: str, max_loss: float) -> str:
    smallest = f"of those within {TIE:g} of it, the one with the fewest trained weights"
    if axis == PARAMETERS:
        return f"The run with the best {TITLES[metric]}; {smallest}."
    return (
        f"Of the runs whose {axis} is at most {max_loss:g} worse than that of the base, the one with the best {TITLES[metric]}; "
        f"{smallest}. If none is left, or none is better than the base, the base is kept."
    )


def frontier_names(rows: Sequence[Row], axis: str) -> list[str]:
    sign = -1 if axis == PARAMETERS or axis in LOWER else 1
    return [rows[i].result.name for i in frontier([(sign * row.guardrail, row.metric) for row in rows])]
