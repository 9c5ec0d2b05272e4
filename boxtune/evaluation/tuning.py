"""--tune: try decode settings on validation, show what each gives, and store the best in the checkpoint's grounding.json."""

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console

from boxtune.answers.calibration import fit
from boxtune.answers.confidence import VERIFY
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import FILE_NAME, Grounding
from boxtune.answers.predictions import Prediction, with_score
from boxtune.answers.verifier import rank_by_verifier
from boxtune.common.environment import versions
from boxtune.common.errors import UserError
from boxtune.common.files import write_whole
from boxtune.data.dataset import read_info
from boxtune.data.records import Record
from boxtune.evaluation import folders
from boxtune.evaluation.decode_grid import Trial, best_of, settings_to_generate, trials_table, try_selections
from boxtune.evaluation.split import Split, dataset_of_checkpoint, read_split
from boxtune.metrics.matching import match_images, scored_hits


def tune(args: argparse.Namespace) -> None:
    """Choose the decode settings of a checkpoint by `args.metric`. Of the dataset, only the validation split is read."""
    # Imported here because it needs torch, which --help and scoring do without.
    from boxtune.evaluation.gate_tuning import Gate, tune_gate
    from boxtune.evaluation.model import load_detector, open_model
    from boxtune.inference.asking import answer_records_with_settings

    # ---- checkpoint and records ----
    _require_file(args.ckpt)
    checkpoint = open_model(args)
    split = read_validation(dataset_of_checkpoint(args, checkpoint.grounding), args.limit)
    _require_metric(args.metric, split, checkpoint.grounding)
    if args.verify and checkpoint.grounding.get_codec().is_click:
        raise UserError(
            "--verify: this checkpoint responds with points, but the verifier asks about boxes. Leave it out."
        )

    # ---- responses ----
    out = args.out or folders.tuning_folder(args.ckpt)
    asked = settings_to_generate(split.records, split.asked, checkpoint.grounding.decoding, args.verify)
    places = {out / _folder_name(settings): settings for settings in asked}
    detector = load_detector(args, checkpoint)
    found = answer_records_with_settings(detector, split.records, split.asked, split.data_dir, places, args.batch_size)

    # ---- scores ----
    trials: list[Trial] = []
    calibrations: dict[Decoding, list[float]] = {}
    for settings, predictions in zip(asked, found, strict=True):
        if settings.verify:
            calibrations[settings] = _fit_verifier(split.records, predictions)
            predictions = [rank_by_verifier(prediction, calibrations[settings]) for prediction in predictions]
        trials += try_selections(split.records, predictions, split.classes, settings, args.metric)
    best = best_of(trials, args.metric)

    # ---- store and show ----
    stored = Grounding.load(Path(args.ckpt))
    gate = tune_gate(detector, split, args.batch_size) if args.gate else Gate(stored.decoding.gate)
    chosen = dataclasses.replace(best.decoding, gate=gate.threshold)
    responses = dataclasses.replace(best.decoding, suppress_iou=1.0, score_threshold=0.0, verify=True)
    calibration = calibrations.get(responses, stored.verify_calibration)
    result = {
        "checkpoint": args.ckpt,
        "data": str(split.data_dir),
        "split": split.name,
        "limit": args.limit,
        "metric": args.metric,
        "before": stored.decoding.to_json(),
        "chosen": chosen.to_json(),
        "gate": dataclasses.asdict(gate) if args.gate else None,
        "verify_calibration": calibration,
        "trials": [dataclasses.asdict(trial) | {"decoding": trial.decoding.to_json()} for trial in trials],
        "versions": versions(),
    }
    write_whole(out / "tuning.json", json.dumps(result, indent=2) + "\n")
    dataclasses.replace(stored, decoding=chosen, verify_calibration=calibration).save(Path(args.ckpt))
    if args.json:
        print(json.dumps(result))
        return
    Console().print(trials_table(trials, args.metric))
    if args.gate:
        print(gate.summary())
    print(f"stored in {Path(args.ckpt) / FILE_NAME}: {json.dumps(result['chosen'])}\nall trials: {out / 'tuning.json'}")


def _folder_name(settings: Decoding) -> str:
    name = f"ask_{settings.ask}_penalty_{settings.repetition_penalty:g}"
    return f"{name}_verify" if settings.verify else name


def _fit_verifier(records: list[Record], predictions: list[Prediction]) -> list[float]:
    """[slope, intercept] that turn the verifier's scores into hit rates; empty if no fit is possible."""
    ranked = with_score(predictions, VERIFY)
    return fit(*scored_hits(match_images(records, ranked), ranked))


def read_validation(data_dir: Path, limit: int | None) -> Split:
    """The validation split of a prepared dataset. Raises UserError if it has none."""
    counts = read_info(data_dir)["splits"].get("validation")
    if not (counts and counts["images"]):
        raise UserError(
            f"--tune: {data_dir} has no validation images. Settings are chosen on validation and never on test. Prepare the data "
            "again with a validation split, or name a dataset that has one: --data DIR."
        )
    return read_split(data_dir, "validation", limit)


def _require_file(ckpt: str) -> None:
    """Raises UserError if the checkpoint has no grounding.json to store settings in."""
    if not (Path(ckpt) / FILE_NAME).is_file():
        raise UserError(
            f"--tune: {ckpt} has no {FILE_NAME} to store the settings in. Name the local folder of a model that boxtune trained."
        )


def _require_metric(metric: str, split: Split, grounding: Grounding) -> None:
    """Raises UserError if the metric is undefined on this split."""
    if metric == "AP" and grounding.get_codec().is_click:
        raise UserError("--metric AP: this checkpoint responds with points, which have no AP. Use --metric f1.")
    if all(all(record["objects"]["ignore"]) for record in split.records):
        raise UserError(
            f"--tune: the {len(split.records)} validation images of {split.data_dir} contain no objects to compare with."
        )
