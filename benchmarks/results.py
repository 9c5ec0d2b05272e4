"""Render docs/results.md and docs/losses.md from benchmarks/results.jsonl. Cells of unmeasured experiments stay empty."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.bootstrap import VALUES, differences, intervals, values_of
from benchmarks.plan import CHOICES, DATASETS, LOSSES, SHORTER, Experiment, Table
from boxtune.common.errors import UserError
from boxtune.common.files import write_whole
from boxtune.common.templates import text_template

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results.jsonl"
GPU_SPEED = FOLDER / "gpu_speed.jsonl"
DOCS = FOLDER.parent / "docs"
# F1 that was set as a goal before the present weights of the embedded model were trained.
GOALS = {
    "nutrition": 0.75,
    "bccd_voc": 0.45,
    "marmot_tables_csv": 0.72,
    "aquarium_yolo": 0.10,
    "publaynet_examples_coco": 0.40,
}


def read_lines(path: Path) -> list[dict]:
    """The JSON lines of `path`; an empty list if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def read_results() -> list[dict]:
    return read_lines(RESULTS)


def write_pages(identities: set[str], bases: dict[str, list[str]]) -> list[Path]:
    """Write docs/results.md and docs/losses.md from the results with these `identities`, and return their paths.

    `bases` holds the hashes of the current base's weights for each experiment. If a table, or a row of the datasets, has no
    result with the current base, results of an earlier base fill it. Raises UserError if one table mixes datasets.
    """
    every = [result for result in read_results() if result["experiment"] in bases]
    current = [result for result in every if result["identity"] in identities]
    earlier = [result for result in every if result["base_sha256"] != bases[result["experiment"]]]

    def of_one_base(*experiments: Experiment) -> tuple[list[dict], str]:
        """(results of these experiments, the mark of the earlier base that they used, or "")."""
        names = {experiment.name for experiment in experiments}
        if found := [result for result in current if result["experiment"] in names]:
            require_one_dataset(found)
            return found, ""
        older = [result for result in earlier if result["experiment"] in names]
        last = older[-1]["base_sha256"] if older else []
        return [result for result in older if result["base_sha256"] == last], base_mark(last)

    datasets = [(experiment, *of_one_base(experiment)) for experiment in DATASETS.experiments]
    choices = [(table, *of_one_base(*table.experiments)) for table in CHOICES]
    losses = [(table, *of_one_base(*table.experiments)) for table in LOSSES]
    shown = [found for _, found, _ in (*datasets, *choices)]
    return [
        render(
            "results.md",
            datasets=[
                row(experiment, found) | titled(experiment, mark) | {"goal": f"{GOALS[experiment.name]:.2f}"}
                for experiment, found, mark in datasets
            ],
            choices=[(table, choice_rows(table, found), mark) for table, found, mark in choices],
            steps=SHORTER,
            machines=machines(shown),
            gpu=[gpu_row(line) for line in read_lines(GPU_SPEED)],
        ),
        render(
            "losses.md",
            tables=[(table, loss_rows(table, found), mark) for table, found, mark in losses],
            steps=SHORTER,
            machines=machines(found for _, found, _ in losses),
        ),
    ]


def require_one_dataset(results: list[dict]) -> None:
    """Raises UserError if the results of one table were measured on different data."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        kinds.setdefault(tuple(result["data_sha256"]), []).append(f"{result['experiment']} seed {result['seed']}")
    if len(kinds) > 1:
        fewest = min(kinds.values(), key=len)
        raise UserError(
            "these results were measured on other data than the rest of their table; measure them again with --again:",
            fewest,
        )


def base_mark(hashes: list[str]) -> str:
    """The name of an earlier base on the pages: the first digits of its hashes."""
    return ", ".join(value[:8] for value in hashes)


def titled(experiment: Experiment, mark: str) -> dict[str, str]:
    return {"title": f"{experiment.title} (earlier weights {mark})"} if mark else {}


def machines(shown: Iterable[list[dict]]) -> list[str]:
    return sorted({describe_machine(result) for results in shown for result in results})


def render(name: str, **values) -> Path:
    DOCS.mkdir(exist_ok=True)
    write_whole(DOCS / name, text_template(FOLDER / f"{name}.j2").render(values))
    return DOCS / name


def describe_machine(result: dict) -> str:
    """Device, threads and versions of one result, as the pages show them."""
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return f"{result['device']}, {result['threads']} per run; " + ", ".join(
        f"{name} {result['versions'][name]}" for name in names
    )


def row(experiment: Experiment, results: list[dict]) -> dict[str, str]:
    """The cells of one experiment. If nothing was measured, all but its title and command are empty."""
    found = [result for result in results if result["experiment"] == experiment.name]
    tuned = [result["tuned"] for result in found]
    base = [result["base"] for result in found if result["base"]]
    ranges = intervals([run["pictures"] for run in tuned]) if tuned else {}
    ranked = [run for run in tuned if run["score_source"] != "constant"]
    cells = {f"base_{key}": figures([run[key] for run in base]) for key in ("f1", "mean_iou_gt")}
    cells |= {key: figures([run[key] for run in tuned]) for key in ("f1", "mean_iou_gt", "AP_equal_scores")}
    cells |= {key: figures([run[key] for run in ranked]) for key in ("AP", "AP50")}
    cells |= {f"{key}_interval": f"{low:.3f} to {high:.3f}" for key, (low, high) in ranges.items()}
    return {
        "title": experiment.title,
        "command": f'make benchmark ARGS="--only {experiment.name}"',
        "images": str(len(tuned[0]["pictures"]["tp"])) if tuned else "",
        "f1_interval": "",
        "mean_iou_gt_interval": "",
        **cells,
        "per_class": [class_row(name, base, tuned) for name in tuned[0]["per_class"]] if tuned else [],
        "empty": empty_cell(tuned),
        # The median, because other programs slow down some runs.
        "seconds": f"{statistics.median(result['seconds']['training'] for result in found):.0f}" if found else "",
        "peak": f"{max(result['peak_mib'] for result in found)}" if found else "",
        "seeds": str(len(found)) if found else "",
    }


def empty_cell(runs: list[dict]) -> str:
    """ "9 of 18": the images without ground truth that received a box, mean over runs; "" if every image has ground truth."""
    images = runs[0]["empty_images"]["images"] if runs else 0
    if not images:
        return ""
    return f"{statistics.mean(run['empty_images']['with_false_positives'] for run in runs):.3g} of {images}"


def choice_rows(table: Table, results: list[dict]) -> list[dict[str, str]]:
    """The cells of a table of choices. Differences are relative to its first row, over the seeds that both rows have."""
    first, *others = table.experiments
    plain = runs_by_seed(first, results)
    return [row(first, results) | difference_cells({}, plain)] + [
        row(experiment, results) | difference_cells(runs_by_seed(experiment, results), plain) for experiment in others
    ]


def loss_rows(table: Table, results: list[dict]) -> list[dict[str, str]]:
    """The cells of a table of docs/losses.md. Differences are relative to its first row, over the seeds that both rows have."""
    first, *others = table.experiments
    plain = runs_by_seed(first, results)
    return [loss_row(first, plain, {})] + [
        loss_row(experiment, runs_by_seed(experiment, results), plain) for experiment in others
    ]


def loss_row(experiment: Experiment, runs: dict[int, dict], plain: dict[int, dict]) -> dict[str, str]:
    image_counts = [run["pictures"] for run in runs.values()]
    cells = {key: figures([values_of(counts)[key] for counts in image_counts]) for key in VALUES}
    cells |= {key: figures([sum(counts[key]) for counts in image_counts], 0) for key in ("fp", "fn")}
    changes = [
        fn_at_equal_fp(runs[seed], plain[seed]) / sum(plain[seed]["pictures"]["fn"]) - 1
        for seed in runs.keys() & plain.keys()
    ]
    cells["fn_difference"] = (
        f"{statistics.mean(changes):+.0%} ({min(changes):+.0%} to {max(changes):+.0%})" if changes else ""
    )
    seeds = str(len(runs)) if runs else ""
    return {"title": experiment.title, "seeds": seeds, **cells, **difference_cells(runs, plain)}


def runs_by_seed(experiment: Experiment, results: list[dict]) -> dict[int, dict]:
    """{seed: the metrics of the tuned model of that seed}."""
    return {result["seed"]: result["tuned"] for result in results if result["experiment"] == experiment.name}


def difference_cells(runs: dict[int, dict], plain: dict[int, dict]) -> dict[str, str]:
    """The differences `runs` − `plain` of each value with their intervals, paired by seed; "" if they share no seed."""
    both = sorted(runs.keys() & plain.keys())
    if not both:
        return {f"{key}_difference": "" for key in VALUES}
    before, after = ([of[seed]["pictures"] for seed in both] for of in (plain, runs))
    cells = {}
    for key, (low, high) in differences(before, after).items():
        mean = statistics.mean(values_of(b)[key] - values_of(a)[key] for a, b in zip(before, after, strict=True))
        cells[f"{key}_difference"] = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return cells


def fn_at_equal_fp(run: dict, plain: dict) -> int:
    """The false negatives of `run` at a score threshold that leaves it no more false positives than `plain` has in total."""
    missed = run["missed_by_fp"]
    return missed[min(sum(plain["pictures"]["fp"]), len(missed) - 1)]


def class_row(name: str, base: list[dict], tuned: list[dict]) -> dict[str, str]:
    return {
        "name": name,
        "ground_truth": str(tuned[0]["per_class"][name]["truth"]),
        "base_f1": figures([run["per_class"][name]["f1"] for run in base]),
        "f1": figures([run["per_class"][name]["f1"] for run in tuned]),
        "AP": figures([run["per_class"][name]["AP"] for run in tuned if run["score_source"] != "constant"]),
    }


def gpu_row(line: dict) -> dict[str, str]:
    """The cells of one measurement of gpu_speed.py."""
    figures_of = {
        "step_seconds": "{} s/step",
        "tokens_per_second": "{} tokens/s",
        "latency": "{} s for one image",
        "images_per_second": "{} images/s",
        "seconds": "{} s",
        "convolution_ms": "convolution {} ms",
        "product_ms": "product {} ms",
    }
    found = [words.format(line[key]) for key, words in figures_of.items() if key in line]
    return {
        "name": line["model"],
        "what": line["what"],
        "found": "out of memory" if line.get("out_of_memory") else ", ".join(found),
        "peak": str(line["peak_gb"] or ""),
        "planned": str(line.get("planned_gb", "")),
        "device": line["device"],
    }


def figures(values: list[float | None], decimals: int = 3) -> str:
    """Mean and, for several values, standard deviation. An undefined value counts as 0, because there was no true positive."""
    numbers = [value or 0.0 for value in values]
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.{decimals}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{decimals}f}{spread}"
