"""What the detection head finds, against generated text: python -m benchmarks.detection_head nutrition [bccd_voc] [--write]

For every seed, a recipe is trained without a head, with a head that only reads the model, and with one that trains it too. Each
checkpoint is evaluated on test by each decoder that it has. The run without a head gets as many more steps as its time allows: as
long as a step with a head takes longer.

AP and AP50 count all boxes, those of the head from a score of FLOOR. F1, false positives and false negatives count the boxes
above the checkpoint's threshold, which was chosen on validation. Milliseconds per image are those of evaluation on one thread,
one decoder after another; those of the head alone, without the model that it reads, are below each table. Runs are kept in
runs/detection_head/. --write puts the tables into docs/detection_head.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.page_table import markdown_table, replace_table
from benchmarks.plan import SEEDS
from benchmarks.process import at_least_one, timed
from benchmarks.results import DOCS
from boxtune.answers.decoding import BOTH, DECODERS, HEAD, TEXT, Decoding
from boxtune.answers.predictions import Prediction
from boxtune.answers.selection import keep_objects
from boxtune.common.errors import command
from boxtune.data.dataset import read_info, read_records
from boxtune.data.questions import as_asked
from boxtune.data.records import Record
from boxtune.inference.asking import answer_records_with_settings
from boxtune.inference.detector import Detector
from boxtune.metrics.average_precision import all_classes
from boxtune.metrics.scoring import score
from boxtune.models.head_files import detection_head
from boxtune.models.language_states import below_adapter
from boxtune.models.libraries import quiet_libraries

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("runs/detection_head")
PAGE = DOCS / "detection_head.md"
FLOOR = 0.001
QUIET = ("--save_strategy", "no", "--eval_strategy", "no", "--overwrite_output_dir", "true")


@dataclass(frozen=True)
class Experiment:
    """A recipe with a head, its options, and for how many steps it is trained without a head, so that both take as long."""

    recipe: str
    text_steps: str
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS


EXPERIMENTS = {
    "nutrition": Experiment("tiny_detection_head", "440"),
    "bccd_voc": Experiment("tiny_bccd_voc", "176", ("--detection_head", "true", "--max_steps", "160"), (0,)),
}


@dataclass(frozen=True)
class Row:
    """One checkpoint by one decoder."""

    title: str
    values: dict[str, float]


def train(recipe: str, seed: int, *options: str) -> tuple[Path, float]:
    """(the final checkpoint, seconds of the whole command); trained only if it does not exist."""
    out = OUT / "-".join([recipe, *(option.removeprefix("--") for option in options), f"seed{seed}"])
    took = out / "seconds.json"
    if not took.is_file():
        out.mkdir(parents=True, exist_ok=True)
        words = ("train_sft.py", "--config", recipe, "--seed", seed, "--output_dir", out / "run", *QUIET, *options)
        seconds, _ = timed([sys.executable, *words], out / "log.txt", torch.get_num_threads(), ROOT)
        took.write_text(json.dumps(seconds))
    return out / "run" / "final", json.loads(took.read_text())


def rows_of(title: str, path: Path, seconds: float, decoders: tuple[str, ...], batch_size: int) -> Iterator[Row]:
    """The results of a checkpoint by each of `decoders`, on its test split."""
    detector = Detector.from_pretrained(path)
    grounding = detector.grounding()
    data_dir = Path(grounding.data_dir)
    records, classes = [as_asked(record) for record in read_records(data_dir, "test")], read_info(data_dir)["classes"]
    settings = {
        decoder: Decoding(decoder=decoder, score_threshold=0 if decoder == TEXT else FLOOR) for decoder in decoders
    }
    places = {path.parent.parent / decoder: setting for decoder, setting in settings.items()}
    answers = answer_records_with_settings(detector, records, classes, data_dir, places, batch_size)
    for decoder, predictions in zip(decoders, answers, strict=True):
        least = {TEXT: 0.0, HEAD: grounding.head_threshold, BOTH: grounding.both_threshold}[decoder]
        values = metrics(records, predictions, classes, least) | {"training, s": seconds}
        yield Row(f"{title}: {decoder}", values)


def metrics(records: list[Record], predictions: list[Prediction], classes: list[str], least: float) -> dict[str, float]:
    names = all_classes(records, classes)
    ranked = score(records, predictions, names)
    kept = [keep_objects(prediction, Decoding(score_threshold=least)) for prediction in predictions]
    counted = score(records, kept, names)["matching"]
    return {
        "AP": ranked["AP"],
        "AP50": ranked["AP50"],
        "F1": counted["f1"],
        "FP": counted["fp"],
        "FN": counted["fn"],
        "mean IoU": counted["mean_iou_gt"],
        "ms per image": 1000 * float(np.mean([prediction["seconds"] for prediction in predictions])),
    }


def head_alone(path: Path, batch_size: int) -> float:
    """Milliseconds per image in the head of a checkpoint, without the model that it reads, on its first test images."""
    detector = Detector.from_pretrained(path)
    data_dir = Path(detector.grounding().data_dir)
    records = [as_asked(record) for record in read_records(data_dir, "test")[: 4 * batch_size]]
    seconds: list[float] = []
    head = detection_head(below_adapter(detector.model))
    head.register_forward_pre_hook(lambda *_: seconds.append(-time.perf_counter()))
    head.register_forward_hook(lambda *_: seconds.append(time.perf_counter()))
    answered = len(list(detector.answer(records, batch_size, data_dir, decoding=Decoding(decoder=HEAD))))
    return 1000 * sum(seconds) / answered


def one_seed(experiment: Experiment, seed: int, batch_size: int) -> list[Row]:
    with_head = experiment.options
    without = (
        *with_head,
        "--detection_head",
        "false",
        "--max_steps",
        experiment.text_steps,
    )  # the last of two values holds
    alone, alone_seconds = train(experiment.recipe, seed, *without)
    reading, reading_seconds = train(experiment.recipe, seed, *with_head)
    joint, joint_seconds = train(experiment.recipe, seed, *with_head, "--detection_trains_model", "true")
    return [
        *rows_of("without a head", alone, alone_seconds, (TEXT,), batch_size),
        *rows_of("with a head that reads", reading, reading_seconds, DECODERS, batch_size),
        *rows_of("trained jointly", joint, joint_seconds, DECODERS, batch_size),
    ]


def table(by_seed: list[list[Row]]) -> str:
    heads = list(by_seed[0][0].values)
    lines = []
    for rows in zip(*by_seed, strict=True):
        columns = {key: [row.values[key] for row in rows] for key in heads}
        cells = [f"{np.mean(values):.{3 if np.mean(values) < 1 else 0}f}" for values in columns.values()]
        spread = [f" ± {np.std(columns[key]):.3f}" if key in ("AP", "AP50", "F1") else "" for key in heads]
        lines.append([rows[0].title, *(cell + more for cell, more in zip(cells, spread, strict=True))])
    return markdown_table(["", *heads], lines)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of EXPERIMENTS")
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/detection_head.md")
    args = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(1)
    tables = []
    for name in args.names:
        experiment = EXPERIMENTS[name]
        seeds = args.seeds or experiment.seeds
        by_seed = [one_seed(experiment, seed, args.batch_size) for seed in seeds]
        with_head, _ = train(experiment.recipe, seeds[0], *experiment.options)
        alone = f"The head alone takes {head_alone(with_head, args.batch_size):.0f} ms per image."
        tables.append(f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}\n\n{table(by_seed)}\n\n{alone}")
    print("\n\n".join(tables))
    if args.write:
        replace_table(PAGE, "\n\n".join(tables))


if __name__ == "__main__":
    main()
