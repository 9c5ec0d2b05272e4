"""Measure what docs/results.md and docs/losses.md report, then write them.

    make benchmark [ARGS="--only bccd"]     python -m benchmarks.run [--only TEXT] [--again] [--jobs N] [--list] [--write-only]

Every experiment of plan.py is trained and evaluated once for each seed. A result is kept in benchmarks/results.jsonl and
belongs to the recipe, options and base weights that made it; what is there is not measured again, so an interrupted
benchmark goes on, and a changed recipe leaves its cells empty until they are measured anew; --again measures what is there
too, and replaces it. What an earlier base gave stays on the pages, marked as its own, until the present one has been measured.
The real data sets are looked for below $BOXTUNE_DATA, or data/sources; experiments whose data is absent are left out, and said
to be.
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
from boxtune.answers.predictions import read_predictions
from boxtune.common.environment import git_revision, versions
from boxtune.common.errors import UserError, command
from boxtune.common.files import write_whole
from boxtune.data.questions import as_asked
from boxtune.data.records import data_hash, read_info, read_records, to_json_line
from boxtune.metrics.matching import ImageMatch, match_images, scored_hits
from boxtune.metrics.scoring import score
from boxtune.training.run_info import device_name

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/benchmark")
SOURCES = Path(os.environ.get("BOXTUNE_DATA", "data/sources"))
TRAINING = ("--save_strategy", "no", "--eval_strategy", "no", "--overwrite_output_dir", "true")


def identity(experiment: Experiment, seed: int) -> str:
    """What a result depends on: recipe as options change it, seed, folds, split and the base's weights."""
    values = recipe_values(experiment)
    settings = [values | overrides(experiment.options), seed, experiment.folds, experiment.split, base_hashes(values)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def overrides(options: tuple[str, ...]) -> dict[str, list[str]]:
    """What stands behind each `--key` of a command line: a recipe's own value of such a key does not matter."""
    values = {}
    for word in options:
        if word.startswith("--"):
            words = values[word.removeprefix("--")] = []
        else:
            words.append(word)
    return values


def base_hashes(values: dict) -> list[str]:
    """The SHA-256 of each file of the base's weights."""
    weights = sorted((ROOT / values["model_name_or_path"]).glob("*.safetensors"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]


def run(log: Path, threads: int, *words: str) -> tuple[float, int]:
    """(seconds, peak resident MiB) of a script. Raises UserError with its last lines where it fails."""
    return timed([sys.executable, *words], log, threads, ROOT)


def recipe_values(experiment: Experiment) -> dict:
    return yaml.safe_load((ROOT / "recipes" / f"{experiment.recipe}.yaml").read_text(encoding="utf-8"))


def source_of(experiment: Experiment) -> Path | None:
    """Where the annotations of a real data set lie; None for one that is generated."""
    source = recipe_values(experiment).get("data_source")
    return SOURCES / Path(source).name if source else None


def prepare(experiment: Experiment) -> list[Path]:
    """The data sets to train on in turn: the recipe's own, or its folds. Made where absent."""
    values, source = recipe_values(experiment), source_of(experiment)
    data_dir = Path(values["data_dir"])
    if not (data_dir / "dataset.json").is_file():
        options = values.get("data_args", [])
        run(
            RUNS / "data.log",
            1,
            "-m",
            "data_prep",
            values["data_format"],
            *([source] if source else []),
            "--out",
            data_dir,
            *options,
        )
    if not experiment.folds:
        return [data_dir]
    return write_folds(data_dir, Path("data/benchmark") / f"{data_dir.name}-{experiment.folds}", experiment.folds)


def measure(experiment: Experiment, seed: int, threads: int, data_dirs: list[Path]) -> dict:
    """Train and evaluate on each of `data_dirs`, one or the folds, whose answers are scored together."""
    records, answers, base_answers = [], [], []
    seconds = {"training": 0.0, "evaluation": 0.0}
    peak, with_base = 0, experiment.base and seed == SEEDS[0]
    # What a benchmark writes itself changes none of its runs.
    revision = git_revision(ROOT, besides=("benchmarks/results.jsonl", "docs"))
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
        answers += read_predictions(out / "eval" / "predictions.jsonl", asked)[0]
        if with_base:
            base_answers += read_predictions(out / "eval" / "base" / "predictions.jsonl", asked)[0]
    classes = read_info(data_dirs[0])["classes"]
    return {
        "experiment": experiment.name,
        "seed": seed,
        "identity": identity(experiment, seed),
        "base_sha256": base_hashes(recipe_values(experiment)),
        "tuned": summary(records, answers, classes),
        "base": summary(records, base_answers, classes) if with_base else None,
        "seconds": {name: round(value) for name, value in seconds.items()},
        "peak_mib": peak,
        "threads": threads,
        "data_sha256": [data_hash(path) for path in data_dirs],
        "device": f"{device_name()}, {os.cpu_count()} cores",
        "git_revision": revision,
        "versions": versions(),
    }


def summary(records: list[dict], answers: list[dict], classes: list[str]) -> dict:
    """The metrics that the page shows, and the counts of every picture, from which intervals are drawn."""
    metrics = score(records, answers, classes)
    pictures = match_images(records, answers)
    counts = {key: [getattr(picture, key) for picture in pictures] for key in ("tp", "fp", "fn")}
    strict = match_images(records, answers, 0.75)
    counts |= {f"{key}75": [getattr(picture, key) for picture in strict] for key in ("tp", "fp", "fn")}
    counts |= {"iou": [round(sum(p.ious), 4) for p in pictures], "truth": [len(p.ious) for p in pictures]}
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
        "missed_by_fp": missed_by_fp(pictures, answers),
    }


def missed_by_fp(pictures: list[ImageMatch], answers: list[dict]) -> list[int]:
    """[i]: the false negatives where a score threshold leaves out just so much that at most i false positives are left."""
    scores, hits = (np.array(values) for values in scored_hits(pictures, answers))
    missed = sum(picture.fn for picture in pictures)
    order = np.argsort(-scores, kind="stable")
    kept = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # boxes of one score are kept or left out together
    false = np.append(0, np.cumsum(hits[order] == 0)[kept])
    missing = np.append(missed + hits.sum(), missed + hits.sum() - np.cumsum(hits[order])[kept])
    return missing[np.searchsorted(false, np.arange(false[-1] + 1), side="right") - 1].tolist()


def measure_all(due: list[tuple[Experiment, int]], jobs: int) -> None:
    """Measure, `jobs` at a time, and keep each result at once. Raises what the first failure raised, and starts no more."""
    # Here, so that no two runs make the same data.
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
    """Add a result to results.jsonl, in place of the one that it repeats."""
    others = [other for other in read_results() if other["identity"] != result["identity"]]
    write_whole(RESULTS, "".join(map(to_json_line, [*others, result])))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the experiment TEXT, or all whose name holds it")
    parser.add_argument("--again", action="store_true", help="measure what is measured already too, and replace it")
    parser.add_argument("--list", action="store_true", help="say what is measured and what is not, and stop")
    parser.add_argument("--write-only", action="store_true", help="write both pages from what is measured")
    parser.add_argument(
        "--jobs", type=at_least_one, default=1, metavar="N", help="runs at a time, which share the cores"
    )
    args = parser.parse_args(argv)
    chosen = [experiment for name, experiment in EXPERIMENTS.items() if args.only in name]
    if args.only in EXPERIMENTS:  # and not the rows of choices, whose names begin with their data's
        chosen = [EXPERIMENTS[args.only]]
    if not chosen:
        raise UserError(f"--only {args.only}: no experiment's name holds it. There are: {', '.join(EXPERIMENTS)}.")
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
            print(f"left out: {name}: no {source}; set BOXTUNE_DATA to where the data sets lie", file=sys.stderr)
        wanted = [(e, seed) for e, seed in jobs if e.name not in absent]
        measure_all([(e, seed) for e, seed in wanted if args.again or identity(e, seed) not in done], args.jobs)
    identities = {identity(experiment, seed) for experiment in EXPERIMENTS.values() for seed in SEEDS}
    bases = {experiment.name: base_hashes(recipe_values(experiment)) for experiment in EXPERIMENTS.values()}
    print(f"written: {', '.join(map(str, write_pages(identities, bases)))}")


if __name__ == "__main__":
    main()
