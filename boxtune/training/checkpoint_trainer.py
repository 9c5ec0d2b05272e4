"""CheckpointTrainer: TRL's SFTTrainer for a model with adapters, soft prompt and detection head, and its complete checkpoints."""

import shutil
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from boxtune.answers.grounding import Grounding
from boxtune.common.errors import UserError, is_out_of_space, reading
from boxtune.models.detection_head import HeadShape
from boxtune.models.head_files import attach_head, is_of_head, load_head, save_head, without_head
from boxtune.models.language_states import below_adapter
from boxtune.models.soft_prompt import SoftPrompt, attach, save_soft_prompt, soft_prompt_of
from boxtune.training.console import say
from boxtune.training.skipped_steps import SkippedSteps
from boxtune.training.soft_prompt import load_soft_prompt

RESUME_REMEDY = (
    "Resume from an earlier checkpoint (--resume_from_checkpoint DIR) with the model and LoRA settings it was trained with, "
    "or start over with --overwrite_output_dir true."
)


class CheckpointTrainer(SFTTrainer):
    """SFTTrainer that saves all that a checkpoint needs, loads it again, and never leaves a partial one.

    `grounding` is saved with every checkpoint. `adapter_dtype`: dtype of the trained weights. `soft_prompt` is trained and saved
    with the adapter. `head_shape`: a new detection head is trained and saved with the model. `skipped_steps`: no checkpoint is
    saved after several of them in a row. Other arguments are SFTTrainer's.
    """

    def __init__(
        self,
        *args,
        grounding: Grounding,
        skipped_steps: SkippedSteps,
        adapter_dtype: torch.dtype = torch.float32,
        soft_prompt: SoftPrompt | None = None,
        head_shape: HeadShape | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.grounding = grounding
        self.adapter_dtype = adapter_dtype
        self.skipped_steps = skipped_steps
        self.has_head = head_shape is not None
        if soft_prompt:
            attach(self.model, soft_prompt)
        if head_shape:  # after PEFT has wrapped the model, so that it neither freezes nor saves the head
            attach_head(self._base(), head_shape)

    def _base(self) -> torch.nn.Module:
        """The model below its adapters: backbone and LM head."""
        return below_adapter(self.accelerator.unwrap_model(self.model))

    def _cast_adapters(self) -> None:
        """Cast the trained weights to `adapter_dtype`. The detection head stays in float32.

        TRL casts the adapters of a 4-bit model to bf16. Small updates round to zero there, and a GradScaler rejects bf16.
        FSDP2 shards each tensor by itself. FSDP1 needs a single dtype, so there the adapters stay as TRL made them.
        """
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            return
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not is_of_head(name):
                parameter.data = parameter.data.to(self.adapter_dtype)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with reading(resume_from_checkpoint, RESUME_REMEDY):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_soft_prompt(self.model, Path(resume_from_checkpoint))
        self._cast_adapters()  # PEFT loads them as fp32, regardless of their dtype in the file
        if self.has_head:
            load_head(self._base(), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(self.state.best_model_checkpoint)
        load_soft_prompt(self.model, best)
        if self.has_head:
            load_head(self._base(), best)

    def _load_callback_state(self) -> None:
        """Restore what the callbacks counted, but keep the recipe's own settings, which may have changed since."""
        for callback in self.callback_handler.callbacks:
            stored = self.state.stateful_callbacks.get(type(callback).__name__)
            if stored and isinstance(callback, EarlyStoppingCallback):
                stored["args"] = callback.state()["args"]
        super()._load_callback_state()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint), RESUME_REMEDY):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(str(checkpoint), RESUME_REMEDY):
            super()._load_rng_state(checkpoint)

    def require_finite(self) -> None:
        """Raises UserError if training has diverged. Such weights are not saved."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        lost = sum(not torch.isfinite(parameter).all() for parameter in trained)
        if lost:
            raise UserError(
                f"training diverged: {lost} of {len(trained)} trained tensors contain non-finite values at step "
                f"{self.state.global_step}. These weights were not saved; lower learning_rate or raise warmup_steps."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        base, folder = self._base(), Path(output_dir or self.args.output_dir)
        if self.has_head and state_dict is None:
            state_dict = without_head(self.model.state_dict())
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # every process calls this, but only one writes
            self.grounding.save(folder)
            if self.has_head:
                save_head(base, folder)
            if soft_prompt := soft_prompt_of(self.model):
                save_soft_prompt(soft_prompt, folder)
            if self.data_collator.teachers:
                self.data_collator.save_examples(folder)

    def create_model_card(self, *args, **kwargs) -> None:
        """None: TRL's would name neither data nor scores. boxtune writes its own to `final` (boxtune/reports/model_card.py)."""

    def _save_checkpoint(self, model, trial) -> None:
        """Save a complete checkpoint or none: a full disk must not leave one that resuming would pick up."""
        self.require_finite()
        if self.skipped_steps.in_a_row > 1:
            say(f"note: no checkpoint at step {self.state.global_step}, because the last steps were skipped")
            return
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # whatever the error, no partial checkpoint may remain
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if not is_out_of_space(error):
                raise
            raise UserError(
                f"{folder} could not be saved ({error}). Free some disk space and continue with --resume_from_checkpoint true; "
                "earlier checkpoints are intact."
            ) from error
