"""Measure what docs/results.md and docs/losses.md report, then write them.

    make benchmark [ARGS="--only bccd"]     python -m benchmarks.run [--only TEXT] [--again] [--jobs N] [--list] [--write-only]

Every experiment of plan.py is trained and evaluated once per seed. benchmarks/results.jsonl keeps each result, bound to the
recipe, options and base weights that produced it. Existing results are not measured again, so an interrupted benchmark
continues where it stopped. A changed recipe leaves its cells empty until it is measured again. --again measures existing
results again and replaces them. Results of an earlier base stay on the pages, marked as such, until the current base has been
measured.

The real datasets are expected in $BOXTUNE_DATA, or data/sources. Experiments without their data are skipped with a message.
"""

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from benchmarks.folds import write_folds
from benchmarks.plan import EXPERIMENTS, SEEDS, Experiment
from benchmarks.process import at_least_one, timed
from benchmarks.results import RESULTS, read_results, write_pages
from boxtune.answers.prediction_file import read_predictions
from boxtune.common.environment import git_revision, versions
from boxtune.common.errors import UserError, command
from boxtune.common.files import write_whole
from boxtune.common.json_lines import to_json_line
from boxtune.data.dataset import data_hash, read_info, read_records
from boxtune.data.questions import as_asked
from boxtune.metrics.matching import ImageMatch, match_images, scored_hits
from boxtune.metrics.scoring import score
from boxtune.training.run_info import device_name

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/benchmark")
SOURCES = Path(os.environ.get("BOXTUNE_DATA", "data/sources"))
# Keys of a recipe that change neither the weights nor the predictions.
AFTER_TRAINING = ("final_guardrails",)
TRAINING = ("--save_strategy", "no", "--eval_strategy", "no", "--overwrite_output_dir", "true")


def identity(experiment: Experiment, seed: int) -> str:
    """A hash of everything that a result depends on: resolved recipe, seed, folds, split and the base's weights."""
    values = {key: value for key, value in recipe_values(experiment).items() if key not in AFTER_TRAINING}
    settings = [values | overrides(experiment.options), seed, experiment.folds, experiment.split, base_hashes(values)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def overrides(options: tuple[str, ...]) -> dict[str, list[str]]:
    """{key: its words} of a command line. These values replace the recipe's own."""
    values = {}
    for word in options:
        if word.startswith("--"):
            words = values[word.removeprefix("--")] = []
        else:
            words.append(word)
    return values


def base_hashes(values: dict) -> list[str]:
    """The SHA-256 of each weights file of the base."""
    weights = sorted((ROOT / values["model_name_or_path"]).glob("*.safetensors"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]


def run(log: Path, threads: int, *words: str) -> tuple[float, int]:
    """Run a script and return (seconds, peak resident MiB). Raises UserError with its last lines if it fails."""
    return timed([sys.executable, *words], log, threads, ROOT)


def recipe_values(experiment: Experiment) -> dict:
    """The keys and values of the experiment's recipe file, without options."""
    return yaml.safe_load((ROOT / "recipes" / f"{experiment.recipe}.yaml").read_text(encoding="utf-8"))


def source_of(experiment: Experiment) -> Path | None:
    """The annotations of a real dataset; None for a generated one."""
    source = recipe_values(experiment).get("data_source")
    return SOURCES / Path(source).name if source else None


def prepare(experiment: Experiment) -> list[Path]:
    """The datasets to train on: the recipe's own, or its folds. They are created if absent."""
    values, source = recipe_values(experiment), source_of(experiment)
    data_dir = Path(values["data_dir"])
    if not (data_dir / "dataset.json").is_file():
        options = values.get("data_args", [])
        words = [values["data_format"], *([source] if source else []), "--out", data_dir, *options]
        run(RUNS / "data.log", 1, "-m", "data_prep", *words)
    if not experiment.folds:
        return [data_dir]
    return write_folds(data_dir, Path("data/benchmark") / f"{data_dir.name}-{experiment.folds}", experiment.folds)


def measure(experiment: Experiment, seed: int, threads: int, data_dirs: list[Path]) -> dict:
    """One result: train and evaluate on each of `data_dirs` (one, or the folds), and score all predictions together."""
    records, predictions, base_predictions = [], [], []
    seconds = {"training": 0.0, "evaluation": 0.0}
    peak, with_base = 0, experiment.base and seed == SEEDS[0]
    # The benchmark's own output does not count as a change of the code.
    revision = git_revision(ROOT, ignoring=("benchmarks/results.jsonl", "docs"))
    for data_dir in data_dirs:
        out = RUNS / "-".join([experiment.name, f"seed{seed}", *([data_dir.name] if experiment.folds else [])])
        log = out.with_suffix(".log")
        train = ("train_sft.py", "--config", experiment.recipe, "--seed", seed, "--data_dir", data_dir)
        took, used = run(log, threads, *train, "--output_dir", out, *TRAINING, *experiment.options)
        seconds["training"], peak = seconds["training"] + took, max(peak, used)
        evaluation = ("evaluate.py", "--ckpt", out / "final", "--split", experiment.split)
        took, _ = run(log, threads, *evaluation, *(["--base"] if with_base else []))
        seconds["evaluation"] += took
        asked = [as_asked(record) for record in read_records(data_dir, experiment.split)]
        records += asked
        predictions += read_predictions(out / "eval" / "predictions.jsonl", asked)[0]
        if with_base:
            base_predictions += read_predictions(out / "eval" / "base" / "predictions.jsonl", asked)[0]
    classes = read_info(data_dirs[0])["classes"]
    return {
        "experiment": experiment.name,
        "seed": seed,
        "identity": identity(experiment, seed),
        "base_sha256": base_hashes(recipe_values(experiment)),
        "tuned": summary(records, predictions, classes),
        "base": summary(records, base_predictions, classes) if with_base else None,
        "seconds": {name: round(value) for name, value in seconds.items()},
        "peak_mib": peak,
        "threads": threads,
        "data_sha256": [data_hash(path) for path in data_dirs],
        "device": f"{device_name()}, {os.cpu_count()} cores",
        "git_revision": revision,
        "versions": versions(),
    }


def summary(records: list[dict], predictions: list[dict], classes: list[str]) -> dict:
    """The metrics that the pages show, and the counts of every image, from which intervals are drawn."""
    metrics = score(records, predictions, classes)
    images = match_images(records, predictions)
    counts = {key: [getattr(image, key) for image in images] for key in ("tp", "fp", "fn")}
    strict = match_images(records, predictions, 0.75)
    counts |= {f"{key}75": [getattr(image, key) for image in strict] for key in ("tp", "fp", "fn")}
    counts |= {"iou": [round(sum(image.ious), 4) for image in images], "truth": [len(image.ious) for image in images]}
    matching = {key: metrics["matching"][key] for key in ("f1", "precision", "recall", "mean_iou_gt", "mean_iou_tp")}
    per_class = {name: {key: row[key] for key in ("AP", "f1", "truth")} for name, row in metrics["per_class"].items()}
    problems = metrics["parse"]["problems"]
    return {
        **{key: metrics[key] for key in ("AP", "AP50", "score_source")},
        "AP_equal_scores": metrics["AP_constant_score"]["mean"],
        **matching,
        "unparsable": problems.get("unparsable", 0),
        "truncated": problems.get("truncated", 0),
        "empty_images": metrics["empty_images"],
        "per_class": per_class,
        "pictures": counts,
        "missed_by_fp": missed_by_fp(images, predictions),
    }


def missed_by_fp(images: list[ImageMatch], predictions: list[dict]) -> list[int]:
    """[i]: the fewest false negatives that a score threshold allows with at most i false positives."""
    scores, hits = (np.array(values) for values in scored_hits(images, predictions))
    missed = sum(image.fn for image in images)
    order = np.argsort(-scores, kind="stable")
    kept = np.flatnonzero(
        np.diff(scores[order], append=-np.inf)
    )  # boxes with equal scores are kept or dropped together
    false = np.append(0, np.cumsum(hits[order] == 0)[kept])
    missing = np.append(missed + hits.sum(), missed + hits.sum() - np.cumsum(hits[order])[kept])
    return missing[np.searchsorted(false, np.arange(false[-1] + 1), side="right") - 1].tolist()


def measure_all(due: list[tuple[Experiment, int]], jobs: int) -> None:
    """Measure, `jobs` at a time, and save each result immediately. The first failure is raised, and no further run starts."""
    # Prepared before the runs start, so that no two runs prepare the same data.
    data_dirs = {experiment: prepare(experiment) for experiment in dict.fromkeys(experiment for experiment, _ in due)}
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(measure, experiment, seed, threads, data_dirs[experiment]) for experiment, seed in due]
        for future in tqdm(as_completed(futures), total=len(futures), unit="run"):
            result = future.result()
            tqdm.write(f"{result['experiment']} seed {result['seed']}")
            keep(result)
    finally:
        pool.shutdown(cancel_futures=True)


def keep(result: dict) -> None:
    """Add a result to results.jsonl, replacing an earlier one with the same identity."""
    others = [other for other in read_results() if other["identity"] != result["identity"]]
    write_whole(RESULTS, "".join(map(to_json_line, [*others, result])))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the experiment TEXT, or all whose name contains it")
    parser.add_argument("--again", action="store_true", help="measure existing results again and replace them")
    parser.add_argument("--list", action="store_true", help="list which results exist, and stop")
    parser.add_argument("--write-only", action="store_true", help="only write both pages from existing results")
    parser.add_argument(
        "--jobs", type=at_least_one, default=1, metavar="N", help="concurrent runs; they share the cores"
    )
    args = parser.parse_args(argv)
    chosen = [experiment for name, experiment in EXPERIMENTS.items() if args.only in name]
    if args.only in EXPERIMENTS:  # without the rows of choices, whose names begin with the same word
        chosen = [EXPERIMENTS[args.only]]
    if not chosen:
        raise UserError(f"--only {args.only}: no experiment name contains it. Experiments: {', '.join(EXPERIMENTS)}.")
    RUNS.mkdir(parents=True, exist_ok=True)
    jobs = [(experiment, seed) for seed in SEEDS for experiment in chosen]
    done = {result["identity"] for result in read_results()}
    if args.list:
        for experiment, seed in jobs:
            print(f"{'measured' if identity(experiment, seed) in done else '-':9s} {experiment.name} seed {seed}")
        return
    sources = {experiment.name: source_of(experiment) for experiment in chosen}
    absent = {name: source for name, source in sources.items() if source and not source.exists()}
    if not args.write_only:
        for name, source in absent.items():
            print(
                f"skipped: {name}: {source} does not exist; set BOXTUNE_DATA to the datasets' folder", file=sys.stderr
            )
        wanted = [(e, seed) for e, seed in jobs if e.name not in absent]
        measure_all([(e, seed) for e, seed in wanted if args.again or identity(e, seed) not in done], args.jobs)
    identities = {identity(experiment, seed) for experiment in EXPERIMENTS.values() for seed in SEEDS}
    bases = {experiment.name: base_hashes(recipe_values(experiment)) for experiment in EXPERIMENTS.values()}
    print(f"wrote {', '.join(map(str, write_pages(identities, bases)))}")


if __name__ == "__main__":
    main()
