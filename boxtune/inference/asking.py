"""A checkpoint asked about records, here or through a server, as evaluate.py's options say; with --base its base as well."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from boxtune.answers.confidence import SCORERS
from boxtune.answers.predictions import Prediction, partial_of, predict
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import UserError
from boxtune.data.questions import first_question
from boxtune.data.records import Record, image_path
from boxtune.inference.client import Served, find_model
from boxtune.inference.generation import generate_answers
from boxtune.models.checkpoint import (
    Checkpoint,
    load_checkpoint_model,
    open_checkpoint,
    quiet_libraries,
    weights_identity,
)


def open_model(args: argparse.Namespace) -> Checkpoint:
    """Everything of the model but its weights."""
    quiet_libraries()
    checkpoint = open_checkpoint(args.ckpt, args.max_pixels, args.max_new_tokens)
    if args.base and not checkpoint.adapter:
        raise UserError(f"--base: {args.ckpt} is no adapter, so it has no base to compare with.")
    return checkpoint


def answer(
    args: argparse.Namespace, checkpoint: Checkpoint, records: list[Record], data_dir: Path, out: Path
) -> dict[str, list[Prediction]]:
    """{"tuned", with --base before it "base"}: the answers to all records, written to `out` and out/base."""
    grounding = checkpoint.grounding
    warn_of_new_wording(records, grounding.questions)
    settings = {
        "weights": weights_identity(checkpoint),
        "grounding": vars(grounding),
        "precision": args.precision,
        "scorers": SCORERS,
        "questions": [[record["id"], first_question(record), *image_identity(record, data_dir)] for record in records],
    }
    collator = DetectionCollator(checkpoint.processor, grounding, data_dir)
    path = out / "predictions.jsonl"
    if args.server is not None:
        url = args.server.rstrip("/")
        served = find_model(url, args.served_model, args.ckpt, checkpoint, args.trust_server)
        ask = partial(Served(url, served, collator, args.trust_server).answers, requests=args.batch_size)
        settings |= {"server": url, "served": served["id"]}
        return {"tuned": predict(ask, records, path, settings=settings, description=served["id"])}
    model = load_checkpoint_model(checkpoint, args.precision)
    answers = {}
    if args.base:
        # Calibration and noise are the tuned model's.
        asking = DetectionCollator(checkpoint.processor, replace(grounding, calibration=[], noise_label=""), data_dir)
        ask = partial(generate_answers, model, asking, batch_size=args.batch_size)
        base_settings = settings | {"adapter": False}
        with model.disable_adapter():
            base_path = out / "base" / "predictions.jsonl"
            answers["base"] = predict(
                ask, records, base_path, settings=base_settings, description="base model", keep_partial=True
            )
    ask = partial(generate_answers, model, collator, batch_size=args.batch_size)
    description = "tuned model" if args.base else "answering"  # alone, it may be any model
    answers["tuned"] = predict(ask, records, path, settings=settings, description=description)
    if args.base:  # kept until here, so that an interruption among the tuned model's answers costs none of the base's
        partial_of(base_path).unlink()
    return answers


def image_identity(record: Record, data_dir: Path) -> list:
    """What tells a record's picture from another under the same id: its place, size in pixels, and file's size and time."""
    path = image_path(record, data_dir)
    stamp = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
    return [str(path.resolve()), record["width"], record["height"], *stamp]


def warn_of_new_wording(records: list[Record], questions: list[str]) -> None:
    new = {first_question(record) for record in records} - set(questions)
    if questions and new:
        print(
            f"warning: {len(new)} question(s) of this split were never trained on, such as {min(new)!r}; "
            f"training asked, for instance, {questions[0]!r}",
            file=sys.stderr,
        )
