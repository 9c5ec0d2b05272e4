"""What each decode setting gains and costs: python -m benchmarks.decoding NAME… [--write]

A NAME is an experiment of `make benchmark` (benchmarks/plan.py). Its checkpoints in runs/benchmark/, one per seed, are asked once
with each setting, on validation, because defaults follow from this table. Checkpoints of a cross-validation have no validation
split; each is asked about the images that it was not trained on.

A cell is the mean over the seeds, and the 95 % interval of the gain over the defaults. The interval resamples images with
replacement; all settings and seeds use the same drawn images (paired). Seconds are those of the responses, on one thread.

Predictions are kept in runs/decoding/. --write puts the tables into docs/decoding.md.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.page_table import markdown_table, replace_table
from benchmarks.plan import EXPERIMENTS, SEEDS
from benchmarks.results import DOCS
from benchmarks.run import RUNS
from boxtune.answers.decoding import Decoding
from boxtune.answers.example_images import FOLDER as EXAMPLES
from boxtune.answers.selection import keep_objects
from boxtune.common.errors import UserError, command
from boxtune.data.dataset import read_info, read_records
from boxtune.data.questions import as_asked
from boxtune.inference.asking import answer_records_with_settings
from boxtune.inference.detector import Detector
from boxtune.metrics.average_precision import all_classes
from boxtune.metrics.bootstrap import interval
from boxtune.metrics.comparison import Run, evaluate_run
from boxtune.models.libraries import quiet_libraries

OUT = Path("runs/decoding")
DEFAULTS_TITLE, DEFAULTS = "defaults", Decoding()
GENERATED = {  # settings that need responses of their own
    DEFAULTS_TITLE: DEFAULTS,
    "repetition_penalty 1.05": Decoding(repetition_penalty=1.05),
    "repetition_penalty 1.1": Decoding(repetition_penalty=1.1),
    "ask each": Decoding(ask="each"),
    "verify": Decoding(verify=True),
    "teachers 2": Decoding(teachers=2),  # of checkpoints that keep example images
}
IMAGES = {"bccd_voc": 30, "nutrition-teachers": 100}  # the first ones only, because responses take long
ONLY = {"nutrition-teachers": "teachers 2"}  # the only setting that these checkpoints are there for
TILES = {"marmot_tables_csv": 1280}  # its pages have 2560 × 3300 pixels; on other data, tiles have 320
SELECTED = {  # settings that choose among the objects of the defaults' responses
    "suppress_iou 0.85": Decoding(suppress_iou=0.85),
    "suppress_iou 0.7": Decoding(suppress_iou=0.7),
    "score_threshold 0.3": Decoding(score_threshold=0.3),
}
METRICS = ("AP", "f1")
PAGE = DOCS / "decoding.md"


@dataclass(frozen=True)
class Outcome:
    """What one seed's checkpoint gives with one setting, and the seconds per image."""

    run: Run
    seconds: float


def checkpoints(name: str, seed: int) -> list[Path]:
    """The checkpoint of a seed, or those of its folds. Raises UserError if they do not exist."""
    folds = EXPERIMENTS[name].folds
    found = sorted(RUNS.glob(f"{name}-seed{seed}{'-fold-*' if folds else ''}/final"))
    if len(found) != max(1, folds):
        raise UserError(
            f"{name}, seed {seed}: {len(found)} of {max(1, folds)} checkpoints are in {RUNS}. "
            f'Train them: make benchmark ARGS="--only {name} --again"'
        )
    return found


def answers_of(
    path: Path, split: str, settings: dict[str, Decoding], limit: int | None, batch_size: int
) -> tuple[list[dict], list[str], dict[str, list[dict]]]:
    """(records, classes, {setting: predictions}) of one checkpoint."""
    detector = Detector.from_pretrained(path)
    data_dir = Path(detector.checkpoint.grounding.data_dir)
    records = [as_asked(record) for record in read_records(data_dir, split)[:limit]]
    classes = read_info(data_dir)["classes"]
    generated = {
        title: setting
        for title, setting in settings.items()
        if (setting.ask == "all" or len(classes) > 1) and (not setting.teachers or (path / EXAMPLES).is_dir())
    }
    places = {OUT / path.parent.name / title.replace(" ", "-"): setting for title, setting in generated.items()}
    answers = answer_records_with_settings(detector, records, classes, data_dir, places, batch_size)
    found = dict(zip(generated, answers, strict=True))
    for title, setting in SELECTED.items():
        found[title] = [keep_objects(prediction, setting) for prediction in found[DEFAULTS_TITLE]]
    return records, classes, found


def outcome(records: list[dict], predictions: list[dict], classes: list[str]) -> Outcome:
    run = evaluate_run(records, predictions, all_classes(records, classes), seed=0)
    return Outcome(run, sum(prediction["seconds"] for prediction in predictions) / len(predictions))


def outcomes(name: str, seed: int, settings: dict[str, Decoding], batch_size: int) -> tuple[int, dict[str, Outcome]]:
    """(number of images, {setting: its outcome}) of one seed; the images of all folds are scored together."""
    split = "test" if EXPERIMENTS[name].folds else "validation"
    parts = [answers_of(path, split, settings, IMAGES.get(name), batch_size) for path in checkpoints(name, seed)]
    records, classes = [record for part in parts for record in part[0]], parts[0][1]
    return len(records), {
        title: outcome(records, [prediction for part in parts for prediction in part[2][title]], classes)
        for title in parts[0][2]
    }


def rows(by_seed: list[dict[str, Outcome]]) -> Iterable[list[str]]:
    """A table row for each setting."""
    for title in by_seed[0]:
        cells = [title]
        for metric in METRICS:
            value = np.mean([seed[title].run.values[metric] or 0.0 for seed in by_seed])
            gains = [seed[title].run.samples[metric] - seed[DEFAULTS_TITLE].run.samples[metric] for seed in by_seed]
            low, high = interval(np.nan_to_num(np.mean(gains, axis=0))) or (0.0, 0.0)
            cells.append(f"{value:.3f}" + ("" if title == DEFAULTS_TITLE else f" ({low:+.3f} to {high:+.3f})"))
        seconds = np.mean([seed[title].seconds for seed in by_seed])
        cells.append("as the defaults" if title in SELECTED else f"{seconds:.2f}")
        yield cells


def table(name: str, batch_size: int) -> str:
    tiles = TILES.get(name, 320)
    settings = GENERATED | {f"tiles {tiles}": Decoding(tiles=tiles)}
    if name in ONLY:
        settings = {DEFAULTS_TITLE: DEFAULTS, ONLY[name]: settings[ONLY[name]]}
    found = [outcomes(name, seed, settings, batch_size) for seed in SEEDS]
    head = [f"{name}, {found[0][0]} images", "AP", "F1", "seconds per image"]
    return markdown_table(head, rows([by_setting for _, by_setting in found]))


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/decoding.md")
    args = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(1)
    tables = "\n\n".join(table(name, args.batch_size) for name in args.names)
    print(tables)
    if args.write:
        replace_table(PAGE, tables)


if __name__ == "__main__":
    main()
