"""GroundingTrainer: TRL's SFTTrainer with fp32 adapters, whole checkpoints and an early stop on nonsense."""

import shutil
from pathlib import Path

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from boxtune.box_validation import BoxValidation
from boxtune.errors import UserError, accepting, is_out_of_space, reading
from boxtune.grounding import Grounding
from boxtune.predictions import Prediction
from boxtune.tracked_pictures import log_pictures

RESUME_REMEDY = (
    "Resume from an earlier checkpoint (--resume_from_checkpoint DIR) with the model and LoRA settings it was trained with, "
    "or start over with --overwrite_output_dir true."
)


# How many of the answered pictures go to the trackers.
TRACKED_PICTURES = 8


class GroundingTrainer(SFTTrainer):
    """Saves grounding.json with every checkpoint, and answers `box_validation` at every evaluation. All other arguments
    are SFTTrainer's."""

    def __init__(
        self,
        *args,
        grounding: Grounding,
        adapter_dtype: torch.dtype = torch.float32,
        box_validation: BoxValidation | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.grounding = grounding
        self.box_validation = box_validation
        if not self.is_fsdp_enabled:
            # TRL casts the adapters of a 4-bit model to bf16, where small updates round to nothing, and which a
            # GradScaler refuses. FSDP needs one dtype throughout, so there they stay as TRL left them.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(adapter_dtype)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if self.state.global_step == 0 and not torch.isfinite(loss):
            raise UserError(
                f"the first loss is {loss.item()}: this model overflows in {self.args.mixed_precision or 'this precision'}. "
                "Train in bf16 (a GPU of compute capability 8.0 or later) or float32."
            )
        return result

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, and what `box_validation` finds; here rather than in a callback, so that the best checkpoint, early
        stopping and the trackers see both."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.box_validation:
            values, predictions = self.box_validation.answer(self.model)
            output.metrics.update({f"{metric_key_prefix}_{key}": value for key, value in values.items()})
            if self.is_world_process_zero():
                self._track_pictures(predictions[:TRACKED_PICTURES])
        return output

    def _track_pictures(self, predictions: list[Prediction]) -> None:
        validation = self.box_validation
        records = validation.records[: len(predictions)]
        images = map(validation.collator.load, records)
        answered = list(zip(images, records, predictions, strict=True))
        log_pictures(self.callback_handler.callbacks, answered, self.grounding.classes, self.state.global_step)

    def create_optimizer(self, *args, **kwargs):
        with accepting("the optimizer cannot be made from these values"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        with accepting("the learning rate schedule cannot be made from these values"):
            return super().create_scheduler(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with reading(resume_from_checkpoint, RESUME_REMEDY):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint), RESUME_REMEDY):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint), RESUME_REMEDY):
            super()._load_rng_state(checkpoint)

    def require_finite(self) -> None:
        """Raises UserError where training has diverged; such weights are worth no checkpoint."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        lost = sum(not torch.isfinite(parameter).all() for parameter in trained)
        if lost:
            raise UserError(
                f"training diverged: {lost} of {len(trained)} trained tensors hold values that are not finite at step "
                f"{self.state.global_step}. Nothing of it was saved; lower learning_rate or raise warmup_steps."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        self.grounding.save(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint is whole or absent: a full disk must not leave one that resuming would pick up."""
        self.require_finite()
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # whatever it was, half a checkpoint must not stay
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if not is_out_of_space(error):
                raise
            raise UserError(
                f"{folder} could not be saved ({error}). Free some space and go on with --resume_from_checkpoint true; "
                "earlier checkpoints are untouched."
            ) from error
