"""benchmarks/results.jsonl → docs/results.md. An experiment that was not measured leaves its cells empty."""

import json
import statistics
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.bootstrap import intervals
from benchmarks.plan import CHOICES, DATA_SETS, SHORTER, Experiment
from boxtune.files import write_whole

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results.jsonl"
GPU_MEMORY = FOLDER / "gpu_memory.jsonl"
GPU_MODELS = ("Qwen2-VL-7B", "Qwen2.5-VL-3B", "Qwen3-VL-8B")
GPU_SIZES = (24, 40, 80)  # GB
PAGE = FOLDER.parent / "docs" / "results.md"


def read_lines(path: Path) -> list[dict]:
    """What was measured; nothing where there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def read_results() -> list[dict]:
    return read_lines(RESULTS)


def write_page(identities: set[str]) -> Path:
    """Write docs/results.md from the results that belong to `identities`, and return its path."""
    current = [result for result in read_results() if result["identity"] in identities]
    rows = {
        table.question: [row(experiment, current) for experiment in table.experiments]
        for table in (DATA_SETS, *CHOICES)
    }
    environment = Environment(
        loader=FileSystemLoader(FOLDER), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    page = environment.get_template("results.md.j2").render(
        data_sets=rows[DATA_SETS.question],
        choices=[(table, rows[table.question]) for table in CHOICES],
        steps=SHORTER[1],
        machines=sorted({describe_machine(result) for result in current}),
        gpu=[gpu_row(name, read_lines(GPU_MEMORY)) for name in GPU_MODELS],
    )
    PAGE.parent.mkdir(exist_ok=True)
    write_whole(PAGE, page)
    return PAGE


def describe_machine(result: dict) -> str:
    names = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return f"{result['device']}, {result['threads']} of them for a run; " + ", ".join(
        f"{name} {result['versions'][name]}" for name in names
    )


def row(experiment: Experiment, results: list[dict]) -> dict[str, str]:
    """The cells of one experiment; all but its name are empty where nothing was measured."""
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
        "command": command_of(experiment),
        "pictures": str(len(tuned[0]["pictures"]["tp"])) if tuned else "",
        "f1_interval": "",
        "mean_iou_gt_interval": "",
        **cells,
        "per_class": [class_row(name, base, tuned) for name in tuned[0]["per_class"]] if tuned else [],
        "seconds": f"{statistics.mean(result['seconds']['training'] for result in found):.0f}" if found else "",
        "peak": f"{max(result['peak_mib'] for result in found)}" if found else "",
        "seeds": str(len(found)) if found else "",
    }


def class_row(name: str, base: list[dict], tuned: list[dict]) -> dict[str, str]:
    return {
        "name": name,
        "truth": str(tuned[0]["per_class"][name]["truth"]),
        "base_f1": figures([run["per_class"][name]["f1"] for run in base]),
        "f1": figures([run["per_class"][name]["f1"] for run in tuned]),
        "AP": figures([run["per_class"][name]["AP"] for run in tuned if run["score_source"] != "constant"]),
    }


def gpu_row(name: str, lines: list[dict]) -> dict[str, str]:
    """Memory and speed at batch 1 and at the largest batch, and the largest batches that three sizes of GPU hold."""
    found = sorted((line for line in lines if line["model"] == name), key=lambda line: line["batch"])
    fitting = [
        max((line["batch"] for line in found if line["peak_gib"] * 2**30 < 0.95e9 * gb), default=0) for gb in GPU_SIZES
    ]
    return {
        "name": name,
        "device": found[0]["device"] if found else "",
        "attention": ", ".join(sorted({line["attention"] for line in found})),
        "peak": f"{found[0]['peak_gib']}" if found else "",
        "speed": f"{max(line['tokens_per_second'] for line in found)}" if found else "",
        "largest": ", ".join(map(str, fitting)) if found else "",
    }


def figures(values: list[float | None]) -> str:
    """Mean and, of several, standard deviation; what is undefined counts as 0, as no hit was made."""
    numbers = [value or 0.0 for value in values]
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.3f}{spread}"


def command_of(experiment: Experiment) -> str:
    options = f' ARGS="{" ".join(experiment.options)}"' if experiment.options else ""
    return f"make train RECIPE={experiment.recipe}{options}"
