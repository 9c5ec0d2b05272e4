"""The Pareto report of a sweep: the task metric of every run against a guardrail metric, as pareto.html and pareto.png."""

import base64
from functools import partial
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import write_whole
from boxtune.common.numbers import format_interval
from boxtune.common.templates import page_template
from boxtune.metrics.guardrail_rules import DOMAINS, LOWER, PROBES
from boxtune.reports.pareto_drawing import Axis, Mark, draw_scatter
from boxtune.reports.pareto_rule import (
    PARAMETERS,
    TITLES,
    Choice,
    Row,
    base_value,
    choose,
    choose_by_metric,
    describe_rule,
    frontier_names,
    make_rows,
)
from boxtune.reports.run_results import mean, read_results


def write_pareto(folder: Path, metric: str, guardrail: str, max_loss: float, name: str) -> str:
    """Write pareto.html and pareto.png for the runs below `folder`; return the recommendation.

    If no run measured the guardrail, the horizontal axis is the number of trained weights.
    """
    results = read_results(folder)
    measured = any(result.probe(guardrail) for result in results)
    axis = guardrail if measured else PARAMETERS
    rows = make_rows(results, metric, axis)
    if not rows:
        raise UserError(
            f"no run below {folder} has both {TITLES[metric]} and a value of {axis}; choose another metric."
        )
    left_out = [result.name for result in results if result.name not in {row.result.name for row in rows}]
    choice = choose(rows, results, metric, guardrail, max_loss) if measured else choose_by_metric(rows, metric)
    on_frontier = set(frontier_names(rows, axis))
    image = draw_scatter(
        [_mark(row, choice, on_frontier) for row in rows],
        Axis(_title(axis), axis == PARAMETERS or axis in LOWER, axis == PARAMETERS, choice.limit),
        Axis(TITLES[metric]),
        f"{name}: {TITLES[metric]} against {_title(axis)}",
    )
    image.save(folder / "pareto.png", "PNG", optimize=True)
    probes = [probe for probe in (*PROBES, *DOMAINS) if any(result.probe(probe) for result in results)]
    page = page_template(Path(__file__).with_name("pareto.html.jinja")).render(
        name=name,
        image=base64.b64encode((folder / "pareto.png").read_bytes()).decode("ascii"),
        choice=choice,
        rule=describe_rule(axis, metric, max_loss),
        metric=TITLES[metric],
        axis=axis,
        measured=measured,
        rows=sorted(rows, key=lambda row: -row.metric),
        on_frontier=on_frontier,
        probes=probes,
        meanings=PROBES | DOMAINS,
        left_out=left_out,
        mean=mean,
        span=format_interval,
        base_of=partial(base_value, results),
    )
    write_whole(folder / "pareto.html", page)
    return choice.sentence


def _mark(row: Row, choice: Choice, on_frontier: set[str]) -> Mark:
    recommended = choice.recommended is not None and choice.recommended.name == row.result.name
    return Mark(
        row.result.name,
        row.guardrail,
        row.metric,
        row.guardrail_interval,
        row.metric_interval,
        row.result.name in on_frontier,
        recommended,
        row.result.is_base,
    )


def _title(axis: str) -> str:
    return axis.replace("_", " ")
