"""The tables of docs/placement.md from the folders of sweeps: python -m benchmarks.placement [SWEEP ...] [--write]

    make sweep SWEEP=tiny_placement ARGS="--seeds 3"
    make sweep SWEEP=tiny_placement_marmot

For every run: mean and standard deviation over its seeds of the task metrics and of the guardrails that matter for forgetting.
"frontier" marks the runs that no other run beats in both axes of the sweep. --write puts each table into docs/placement.md, with
the recommendation of the sweep below it.
"""

import argparse
from pathlib import Path

from benchmarks.page_table import markdown_table, replace_table
from benchmarks.results import FOLDER, figures
from boxtune.common.errors import command
from boxtune.reports.pareto_rule import choose, frontier_names, make_rows
from boxtune.reports.run_results import RunResult, read_results
from boxtune.sweeps.sweep_file import read_sweep

PAGE = FOLDER.parent / "docs" / "placement.md"
SWEEPS = ("tiny_placement", "tiny_placement_marmot", "tiny_irrelevant")
PROBES = {
    "irrelevant_pass_rate": "unrelated images passed",
    "hallucinated_boxes": "boxes per unrelated image",
    "absent_rate": "boxes for absent classes",
    "crop_consistency": "crop consistency",
    "caption_sanity": "sane captions",
    "drift_kl": "drift, KL",
    "drift_top1": "drift, top-1",
}
HEAD = ["run", "LoRA on", "trained weights", "seeds", "F1", "mean IoU", "AP", *PROBES.values(), "frontier"]


def describe(result: RunResult, on_frontier: set[str]) -> list[str]:
    """A row of the table."""
    metrics = [figures(result.metric(name)) for name in ("f1", "mean_iou_gt", "AP")]
    probes = [figures(result.probe(name)) for name in PROBES]
    mark = "yes" if result.name in on_frontier else ""
    return [result.name, result.placement, f"{result.trainable:,}", str(len(result.seeds)), *metrics, *probes, mark]


def table_of(name: str, runs: Path) -> str:
    """The table of a sweep's runs in its order, and the sweep's recommendation."""
    sweep = read_sweep(name)
    results = {result.name: result for result in read_results(runs / name)}
    ordered = [results[name] for name in sweep.runs if name in results]
    rows = make_rows(ordered, sweep.metric, sweep.guardrail)
    on_frontier = set(frontier_names(rows, sweep.guardrail))
    sentence = choose(rows, ordered, sweep.metric, sweep.guardrail, sweep.max_guardrail_loss).sentence
    table = markdown_table(HEAD, (describe(result, on_frontier) for result in ordered))
    return f"{table}\n\nRecommendation of the sweep: {sentence}"


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"names of sweeps (default {', '.join(SWEEPS)})")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the sweeps' folders")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/placement.md")
    args = parser.parse_args(argv)
    for name in args.sweeps or SWEEPS:
        table = table_of(name, args.runs)
        print(f"{name}\n\n{table}\n")
        if args.write:
            replace_table(PAGE, table, name)


if __name__ == "__main__":
    main()
