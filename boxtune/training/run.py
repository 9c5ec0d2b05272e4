"""The steps of a run before and after the trainer's own loop: record the start, train, calibrate scores, push the model."""

import copy
import shutil
import sys
from functools import partial
from pathlib import Path

import torch

from boxtune.answers.calibration import fit
from boxtune.answers.decoding import Decoding
from boxtune.answers.selection import keep_objects
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.packed import as_padded
from boxtune.common.errors import UserError
from boxtune.data.records import Record
from boxtune.inference.head_answers import both_answers, head_answers
from boxtune.metrics.matching import match_images, scored_hits
from boxtune.metrics.scoring import total_rates
from boxtune.models.hub import LOG_IN, is_logged_in, push_folder
from boxtune.reports.model_card import model_name
from boxtune.training.box_validation import Ask, BoxValidation
from boxtune.training.callbacks import BeginCallback, InterruptCallback
from boxtune.training.console import say
from boxtune.training.memory_plan import batch_of, cost_of, savings
from boxtune.training.recipe import Recipe
from boxtune.training.run_info import changed_data, changed_keys, describe_batch, describe_tokens, save_run_info
from boxtune.training.trainer import DetectionTrainer

# Largest number of validation images on which scores are calibrated.
CALIBRATION_IMAGES = 100
# Thresholds of the detection head's scores to choose from.
THRESHOLDS = [step / 20 for step in range(1, 19)]


def will_push(recipe: Recipe) -> bool:
    """Whether the final model will be pushed. If the user wants that but is not logged in, prints a note."""
    if recipe.training.push_to_hub and not is_logged_in(recipe.hub_token):
        say(f"note: push_to_hub: you are not logged in, so the model will only be saved locally. {LOG_IN}")
        return False
    return recipe.training.push_to_hub


def say_changes(recipe: Recipe, data_dir: Path) -> None:
    """Print how a resumed run differs from the run that it continues."""
    output_dir = Path(recipe.training.output_dir)
    changed = changed_keys(output_dir, recipe) + (["the data"] if changed_data(output_dir, data_dir) else [])
    if changed:
        say(f"note: the resumed run differs from the earlier one in: {', '.join(changed)}")


def record_start(trainer: DetectionTrainer, recipe: Recipe, replaced: list[Path]) -> None:
    """Delete the folders of the run that this one replaces, and save the files of run_info.py as soon as training begins."""
    if not trainer.is_world_process_zero():
        return
    for path in replaced:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    output_dir = Path(recipe.training.output_dir)
    # Kept as text: the batch itself, with its images, would stay on the GPU for the whole run.
    processor, batch = trainer.processing_class, as_padded(next(iter(trainer.get_train_dataloader())))
    first_batch = f"{describe_batch(processor, batch)}\n{describe_tokens(processor, batch)}"
    if trainer.eval_dataset:  # without a data loader, which would draw a random number
        batch = trainer.data_collator([trainer.eval_dataset[0]])
        first_batch += (
            f"\n--- first evaluation example\n{describe_batch(processor, batch)}\n{describe_tokens(processor, batch)}"
        )
    del batch
    save = partial(save_run_info, output_dir, recipe, trainer.model, first_batch)
    trainer.add_callback(BeginCallback(save))


def run_training(trainer: DetectionTrainer, recipe: Recipe, resume_from: Path | None) -> None:
    """Train to the end. Exits with code 130 after an interruption, which leaves a checkpoint.

    Raises UserError if memory runs out or an optional package is missing.
    """
    interrupt = next(c for c in trainer.callback_handler.callbacks if isinstance(c, InterruptCallback))
    try:
        with torch.autograd.set_detect_anomaly(recipe.options.detect_anomaly):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of GPU memory ({error}). What would help most:", _changes(trainer, recipe)) from None
    except ImportError as error:  # a value needs an optional package that is not installed
        raise UserError(f"{recipe.name}: {error}") from None
    finally:
        interrupt.restore()  # the trainer does not, if training fails
    say(trainer.padding.describe(trainer.summed))
    if interrupt.interrupted:
        say(f"stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint true")
        sys.exit(130)


def _changes(trainer: DetectionTrainer, recipe: Recipe) -> list[str]:
    """The changes of the recipe that save the most memory."""
    config = trainer.model.config
    batch = batch_of(recipe, config, trainer.data_collator.grounding.max_pixels)
    return [*(["fewer grounding_samples"] if trainer.policy_loss else []), *savings(cost_of(recipe, config), batch)]


def require_promotion(trainer: DetectionTrainer) -> None:
    """Exits with code 1 if guardrails are asked and no model of this run keeps them."""
    if not trainer.guardrails or trainer.guardrails.keeps(trainer.state, trainer.args.load_best_model_at_end):
        return
    say(
        f"no model was saved as {trainer.args.output_dir}/final, because none keeps the guardrails (see above). Train fewer "
        "modules or with a lower learning_rate, or accept more with select_pass_rate_drop and select_hallucination_rise. "
        "Checkpoints remain."
    )
    sys.exit(1)


def fit_calibration(trainer: DetectionTrainer, collator: DetectionCollator, records: list[Record]) -> list[float]:
    """[slope, intercept] that turn scores into hit rates, fitted on validation records; empty if no fit is possible."""
    validation = BoxValidation(collator, records, CALIBRATION_IMAGES, trainer.args.per_device_eval_batch_size)
    trainer.model.eval()
    predictions = validation.predict(trainer.model, "calibrating scores")
    scores, hits = scored_hits(match_images(validation.records, predictions), predictions)
    calibration = fit(scores, hits)
    if not calibration:
        correct = f"{sum(hits)} of {len(hits)} boxes on validation images are correct"
        say(f"note: scores stay uncalibrated, because no calibration can be fitted: {correct}")
    return calibration


def fit_thresholds(trainer: DetectionTrainer, collator: DetectionCollator, records: list[Record]) -> dict[str, float]:
    """{"head_threshold", "both_threshold"}: of THRESHOLDS, those with the best F1 on validation records.

    The scores of text are those of `trainer.grounding`, which is already calibrated.
    """
    collator = copy.copy(collator)
    collator.grounding = trainer.grounding
    validation = BoxValidation(collator, records, CALIBRATION_IMAGES, trainer.args.per_device_eval_batch_size)
    trainer.model.eval()

    def best(ask: Ask) -> float:
        predictions = validation.predict(trainer.model, "choosing the head's thresholds", ask)

        def f1(threshold: float) -> float:
            kept = [keep_objects(prediction, Decoding(score_threshold=threshold)) for prediction in predictions]
            return total_rates(match_images(validation.records, kept))["f1"] or 0.0

        return max(THRESHOLDS, key=f1)

    return {"head_threshold": best(head_answers), "both_threshold": best(both_answers)}


def push_final(recipe: Recipe, final: Path) -> None:
    """Push the final model to the Hub. A failure is only a warning, because the trained model is saved locally."""
    training = recipe.training
    repo = training.hub_model_id or model_name(final)
    try:
        url = push_folder(final, repo, private=training.hub_private_repo, token=recipe.hub_token)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
    else:
        say(f"pushed: {url}")
