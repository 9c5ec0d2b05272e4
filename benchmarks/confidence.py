"""Compare the confidence scorers: python -m benchmarks.confidence scenes:2 RUN/final [...] [--split validation] [--verify]
                                 [--write]

For every model: the AP of the same boxes with each scorer of boxtune/answers/confidence.py and with equal scores, and a 95 %
interval of the gain. The interval resamples images with replacement; both rankings use the same drawn images (paired).

A MODEL is one of
- `scenes:SEED`: the embedded base on held-out scenes of the kind it was pretrained on, drawn with that seed
- a checkpoint, on a split of the dataset that it was trained on
- a pattern such as 'runs/benchmark/NAME-seed0-fold-*/final': the checkpoints of a cross-validation, each on the images that it
  was not trained on.

--verify adds the verifier (boxtune/answers/verifier.py), which needs one more pass over a prompt for each box.
Predictions are kept in runs/confidence/, keyed by the weights, and are generated if absent. --write puts the table into
docs/confidence.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.page_table import markdown_table, replace_table
from benchmarks.results import FOLDER
from boxtune.answers.calibration import calibrate, fit, reliability
from boxtune.answers.confidence import DEFAULT, SCORERS, VERIFY
from boxtune.answers.conversation import FORMAT_SENTENCES, SYSTEM_PROMPT
from boxtune.answers.decoding import Decoding
from boxtune.answers.prediction_file import read_predictions
from boxtune.answers.prediction_writer import fingerprint, predict
from boxtune.answers.predictions import with_score
from boxtune.answers.stated import Stated
from boxtune.common.errors import UserError, command
from boxtune.data.dataset import read_info, read_records, write_dataset
from boxtune.data.questions import as_asked
from boxtune.metrics.average_precision import all_classes
from boxtune.metrics.bootstrap import draws, interval
from boxtune.metrics.coco_matching import CocoBoxes
from boxtune.metrics.matching import match_images, scored_hits
from boxtune.metrics.precision_recall import RankedMatches

OUT = Path("runs/confidence")
EMBEDDED = "assets/tiny_qwen3_vl"
# What it was pretrained with; it has no grounding.json that would tell. No scene is larger.
EMBEDDED_FACTS = Stated("qwen3_vl", SYSTEM_PROMPT, FORMAT_SENTENCES["json_boxes"], max_pixels=448 * 448)
SCENES = "scenes:"
SCENE_COUNT = 300
DRAWS, ORDERS = 200, 5
PAGE = FOLDER.parent / "docs" / "confidence.md"


def scenes(seed: int) -> Path:
    """The folder of a prepared dataset of held-out scenes, generated if absent.

    Seed 0 was used for the base's training curve and seed 1 for its report.
    """
    data_dir = Path(f"data/held_out_scenes_{seed}")
    if (data_dir / "dataset.json").is_file():
        return data_dir
    from assets.pretraining_batches import held_out  # imports torch

    image_dir = data_dir.with_name(f"{data_dir.name}_images")
    image_dir.mkdir(parents=True, exist_ok=True)
    records = held_out(SCENE_COUNT, seed)
    for i, record in enumerate(records):
        path = image_dir / f"{i:04d}.png"
        record.pop("scenes")[-1].image.save(path)
        record |= {"id": path.stem, "image": str(path.resolve())}
    classes = sorted({label for record in records for label in record["objects"]["category"]})
    splits = {"validation": records}
    write_dataset(data_dir, name="scenes", source_format="scenes", classes=classes, splits=splits, problems=[])
    return data_dir


def answered(word: str, split: str, verify: bool) -> tuple[list[dict], list[dict], list[str]]:
    """(records, predictions, classes) of a model, or of all models that a pattern matches.

    Raises UserError if the pattern matches none.
    """
    if "*" not in word:
        return ask(word, split, verify)
    parts = [ask(str(path), "test", verify) for path in sorted(Path().glob(word))]  # a fold has no validation split
    if not parts:
        raise UserError(f'no checkpoint matches {word}; train the folds: make benchmark ARGS="--only as-is --again"')
    records, predictions = ([row for part in parts for row in part[i]] for i in (0, 1))
    return records, predictions, parts[0][2]


def ask(word: str, split: str, verify: bool) -> tuple[list[dict], list[dict], list[str]]:
    """(records, predictions, classes) of one model; its predictions are generated if absent. Raises UserError for a bad seed."""
    from boxtune.batching.collator import DetectionCollator
    from boxtune.inference.generation import generate_answers
    from boxtune.models.checkpoint import load_checkpoint_model, open_checkpoint, weights_identity
    from boxtune.models.libraries import quiet_libraries

    quiet_libraries()
    seed = word.removeprefix(SCENES) if word.startswith(SCENES) else None
    if seed is not None and not seed.isdecimal():
        raise UserError(f"{word}: the seed must be an integer, as in scenes:2.")
    checkpoint = open_checkpoint(word) if seed is None else open_checkpoint(EMBEDDED, EMBEDDED_FACTS)
    data_dir = Path(checkpoint.grounding.data_dir) if seed is None else scenes(int(seed))
    records = [as_asked(record) for record in read_records(data_dir, split)]
    settings = weights_identity(checkpoint) | {"scorers": SCORERS} | ({"verify": True} if verify else {})
    grounding = replace(checkpoint.grounding, decoding=Decoding(verify=verify))
    path = OUT / f"{word.strip('/').replace('/', '-')}-{fingerprint(settings)[:8]}" / f"{split}.jsonl"
    if not path.is_file():
        collator = DetectionCollator(checkpoint.processor, grounding, data_dir)
        model = load_checkpoint_model(checkpoint)
        answers = partial(generate_answers, model, collator, batch_size=8)
        predict(answers, records, path, settings=settings)
    predictions, _ = read_predictions(path, records)
    # Raw scores: the checkpoint's own calibration would hide the effect of calibrating below.
    return records, with_score(predictions, DEFAULT), read_info(data_dir)["classes"]


def shuffled(predictions: list[dict], seed: int) -> list[dict]:
    """The predictions with random scores: one of the orders that equal scores allow."""
    rng = np.random.default_rng(seed)
    return [
        p | {"objects": p["objects"] | {"score": rng.random(len(p["objects"]["category"])).tolist()}}
        for p in predictions
    ]


def compare(word: str, split: str, scorers: Sequence[str]) -> list[str]:
    """A table row: the AP with equal scores, and each scorer's AP with the 95 % interval of its gain."""
    records, predictions, classes = answered(word, split, VERIFY in scorers)
    boxes = CocoBoxes(records, predictions, all_classes(records, classes))
    ranked = {name: boxes.match(boxes.scores_of(with_score(predictions, name))) for name in scorers}
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


def average_precision(matches: RankedMatches, weights: np.ndarray | None) -> float:
    ap = matches.accumulate().ap() if weights is None else matches.average_precisions(weights[None])[0, 0]
    return float(np.nan_to_num(ap or 0.0))


def calibration_errors(records: list[dict], predictions: list[dict]) -> str:
    """Expected calibration error before → after; each half of the images is calibrated with a fit on the other half."""
    halves = [scored_hits(match_images(records[i::2], predictions[i::2]), predictions[i::2]) for i in (0, 1)]
    fitted = [fit(*half) for half in halves]
    hits = [hit for _, half in halves for hit in half]
    before = reliability([score for half, _ in halves for score in half], hits)["expected_calibration_error"]
    if not all(fitted):
        return f"{before:.3f} → not fitted"
    after = [score for (half, _), other in zip(halves, fitted[::-1], strict=True) for score in calibrate(half, other)]
    return f"{before:.3f} → {reliability(after, hits)['expected_calibration_error']:.3f}"


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="scenes:SEED, a checkpoint, or a pattern of the checkpoints of a cross-validation",
    )
    parser.add_argument("--split", default="validation")
    parser.add_argument("--write", action="store_true", help="put the table into docs/confidence.md")
    parser.add_argument("--verify", action="store_true", help="add the verifier, which asks about each box")
    args = parser.parse_args(argv)
    scorers = (*SCORERS, VERIFY) if args.verify else SCORERS
    head = ["model", "images, predicted boxes", "equal scores", *scorers, "calibration error"]
    table = markdown_table(head, (compare(word, args.split, scorers) for word in args.models))
    print(table)
    if args.write:
        replace_table(PAGE, table)


if __name__ == "__main__":
    main()
