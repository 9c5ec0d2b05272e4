"""A short training run, and decode settings for its checkpoint, which several test files need."""

import json
from dataclasses import replace
from pathlib import Path

import train_sft
from boxtune.answers.decoding import Decoding
from boxtune.answers.grounding import Grounding

WEIGHTS = ("--iou_loss_weight", 1.0, "--fp_loss_weight", 0.5, "--fn_loss_weight", 2.0)


def train(data, out, *extra, config="tiny_nutrition_qlora", overlay=None) -> Path:
    """Train two steps of one example each in this process. Returns the run folder, which is `out`."""
    overlays = ["--overlay", overlay] if overlay else []
    fixed = ["--data_dir", data, "--output_dir", out, "--per_device_train_batch_size", 1]
    fixed += ["--gradient_accumulation_steps", 1, "--logging_steps", 1, "--eval_strategy", "no", "--max_steps", 2]
    fixed += ["--eval_images", 0]
    train_sft.main([str(word) for word in ["--config", config, *overlays, *fixed, *extra]])
    return Path(out)


def tune(checkpoint: Path, **settings) -> None:
    """Store decode settings in a checkpoint."""
    replace(Grounding.load(checkpoint), decoding=Decoding(**settings)).save(checkpoint)


def trainer_state(run: Path, step: int = 2) -> dict:
    """The content of a checkpoint's trainer_state.json."""
    return json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())


def log_history(run: Path, step: int = 2) -> list[dict]:
    """The log entries of a run up to a checkpoint."""
    return trainer_state(run, step)["log_history"]
