"""Which score ranks boxes best? python -m benchmarks.confidence scenes:2 RUN/final [...] [--split validation] [--write]

For every model: AP of the same boxes with each scorer of confidence.py, against equal scores, and a 95 % interval of
the difference by drawing pictures with replacement, both answering the same ones (paired). `scenes:SEED` is the embedded base on
pictures of its own held-out kind, drawn with that seed; any other word is a checkpoint, on the split of the data that it was
trained on, or a pattern such as 'runs/benchmark/NAME-seed0-fold-*/final' of those of a cross-validation, each on the pictures
that it did not see. Predictions lie in runs/confidence/, by the weights that gave them, and are made where absent. --write puts
the table into docs/confidence.md.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.results import FOLDER
from boxtune.answers.calibration import calibrate, fit, reliability
from boxtune.answers.confidence import DEFAULT, SCORERS
from boxtune.answers.predictions import fingerprint, predict, read_predictions, with_score
from boxtune.common.errors import UserError, command
from boxtune.common.files import write_whole
from boxtune.data.questions import as_asked
from boxtune.data.records import read_info, read_records, write_dataset
from boxtune.metrics.average_precision import CocoBoxes, Matches, all_classes
from boxtune.metrics.bootstrap import draws, interval
from boxtune.metrics.matching import match_images, scored_hits

OUT = Path("runs/confidence")
EMBEDDED = "assets/tiny_qwen3_vl"
SCENES = "scenes:"
PICTURES = 300
DRAWS, ORDERS = 200, 5
PAGE = FOLDER.parent / "docs" / "confidence.md"
START, END = "<!-- table -->", "<!-- end of table -->"


def scenes(seed: int) -> Path:
    """Held-out scenes as a prepared data set, made where absent. Seed 0 is the base's training and 1 its own report."""
    data_dir = Path(f"data/held_out_scenes_{seed}")
    if (data_dir / "dataset.json").is_file():
        return data_dir
    sys.path.insert(0, "assets")
    from pretrain_tiny_model import held_out  # imports torch

    pictures = data_dir.with_name(f"{data_dir.name}_pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    records = held_out(PICTURES, seed)
    for i, record in enumerate(records):
        path = pictures / f"{i:04d}.png"
        record.pop("scene").image.save(path)
        record |= {"id": path.stem, "image": str(path.resolve())}
    classes = sorted({label for record in records for label in record["objects"]["category"]})
    splits = {"validation": records}
    write_dataset(data_dir, name="scenes", source_format="scenes", classes=classes, splits=splits, problems=[])
    return data_dir


def answered(word: str, split: str) -> tuple[list[dict], list[dict], list[str]]:
    """(records, predictions, classes) of a model, or of all that a pattern names. Raises UserError where it names none."""
    if "*" not in word:
        return ask(word, split)
    parts = [ask(str(path), "test") for path in sorted(Path().glob(word))]  # a fold has no validation split
    if not parts:
        raise UserError(f'no checkpoint is called {word}; train the folds: make benchmark ARGS="--only as-is --again"')
    records, predictions = ([row for part in parts for row in part[i]] for i in (0, 1))
    return records, predictions, parts[0][2]


def ask(word: str, split: str) -> tuple[list[dict], list[dict], list[str]]:
    from boxtune.batching.collator import DetectionCollator
    from boxtune.inference.generation import generate_answers
    from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint, quiet_libraries, weights_identity

    quiet_libraries()
    seed = word.removeprefix(SCENES) if word.startswith(SCENES) else None
    if seed is not None and not seed.isdecimal():
        raise UserError(f"{word}: the seed must be a whole number, as in scenes:2.")
    checkpoint = open_checkpoint(word if seed is None else EMBEDDED)
    data_dir = Path(checkpoint.grounding.data_dir) if seed is None else scenes(int(seed))
    records = [as_asked(record) for record in read_records(data_dir, split)]
    settings = weights_identity(checkpoint) | {"scorers": SCORERS}
    path = OUT / f"{word.strip('/').replace('/', '-')}-{fingerprint(settings)[:8]}" / f"{split}.jsonl"
    if not path.is_file():
        collator = DetectionCollator(checkpoint.processor, checkpoint.grounding, data_dir)
        model = load_checkpoint_model(checkpoint)
        answers = partial(generate_answers, model, collator, batch_size=8)
        predict(answers, records, path, settings=settings)
    predictions, _ = read_predictions(path, records)
    # A checkpoint's own calibration would hide what calibrating does.
    return records, with_score(predictions, DEFAULT), read_info(data_dir)["classes"]


def shuffled(predictions: list[dict], seed: int) -> list[dict]:
    """Scores that say nothing: AP of one order in which equal scores may stand."""
    rng = np.random.default_rng(seed)
    return [
        p | {"objects": p["objects"] | {"score": rng.random(len(p["objects"]["category"])).tolist()}}
        for p in predictions
    ]


def compare(word: str, split: str) -> list[str]:
    """The row of a model's table: AP with equal scores, and every scorer's AP with the interval of its gain."""
    records, predictions, classes = answered(word, split)
    boxes = CocoBoxes(records, predictions, all_classes(records, classes))
    ranked = {name: boxes.match(boxes.scores_of(with_score(predictions, name))) for name in SCORERS}
    orders = [boxes.match(boxes.scores_of(shuffled(predictions, seed))) for seed in range(ORDERS)]

    def equal(weights: np.ndarray | None) -> float:
        return float(np.mean([average_precision(order, weights) for order in orders]))

    drawn = list(draws(len(records), DRAWS, seed=0))
    equal_samples = np.array([equal(weights) for weights in drawn])
    count = sum(len(prediction["objects"]["category"]) for prediction in predictions)
    cells = [f"{len(records)}, {count}", f"{equal(None):.3f}"]
    for matches in ranked.values():
        low, high = interval(np.array([average_precision(matches, weights) for weights in drawn]) - equal_samples)
        cells.append(f"{average_precision(matches, None):.3f} ({low:+.3f} to {high:+.3f})")
    return [word, *cells, calibration_errors(records, predictions)]


def average_precision(matches: Matches, weights: np.ndarray | None) -> float:
    return matches.coco(weights).ap() or 0.0


def calibration_errors(records: list[dict], predictions: list[dict]) -> str:
    """Expected calibration error before and after: each half of the pictures calibrated by what the other half tells."""
    halves = [scored_hits(match_images(records[i::2], predictions[i::2]), predictions[i::2]) for i in (0, 1)]
    fitted = [fit(*half) for half in halves]
    hits = [hit for _, half in halves for hit in half]
    before = reliability([score for half, _ in halves for score in half], hits)["expected_calibration_error"]
    if not all(fitted):
        return f"{before:.3f} → not told"
    after = [score for (half, _), other in zip(halves, fitted[::-1], strict=True) for score in calibrate(half, other)]
    return f"{before:.3f} → {reliability(after, hits)['expected_calibration_error']:.3f}"


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="scenes:SEED, a checkpoint, or a pattern of a cross-validation's checkpoints",
    )
    parser.add_argument("--split", default="validation")
    parser.add_argument("--write", action="store_true", help="put the table into docs/confidence.md")
    args = parser.parse_args(argv)
    head = ["model", "pictures, predicted boxes", "equal scores", *SCORERS, "calibration error"]
    rows = [head, ["---"] * len(head), *(compare(word, args.split) for word in args.models)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(END)[1]
        write_whole(PAGE, f"{before}{START}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    main()
