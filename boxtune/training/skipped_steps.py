"""Steps whose loss or gradient is not finite: they change no weight, are reported, and end a run if they do not stop."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerState

from boxtune.common.errors import UserError
from boxtune.common.problems import join_names
from boxtune.training.console import say
from boxtune.training.last_checkpoint import last_whole_checkpoint

OTHER_PRECISION = (
    "Train in bf16 (a GPU of compute capability 8.0 or later) or float32: --dtype float32 --bf16 false --fp16 false"
)
# The key of a skipped step in the log history, which is saved with every checkpoint: the ids of its records.
SKIPPED = "skipped_records"


class SkippedSteps(TrainerCallback):
    """Decides which steps are skipped. The trainer asks, and clears the gradients of a skipped step.

    limit: number of skipped steps in a row that ends the run. After a skipped step, the learning rates and the limit of the
    gradient norm are multiplied by `recovery_factor` for `recovery_steps` steps.

    In fp16, the loss is scaled by 2^16 at first, and a gradient that overflows halves the scale. Such a step is skipped, too, but
    it is reported, counts for the limit and lowers the rates only if the scale has already fallen to 1.
    """

    def __init__(self, limit: int, recovery_steps: int, recovery_factor: float):
        self.limit, self.recovery_steps, self.recovery_factor = limit, recovery_steps, recovery_factor
        self.total = self.in_a_row = 0
        self.last: int | None = None  # number of the last skipped step, where the first step is 0
        self._start_step()

    def _start_step(self) -> None:
        self.losses: list[float] = []  # those that are not finite
        self.records: list[str] = []  # of all micro-batches
        self.suspects: list[str] = []  # of micro-batches whose loss is not finite

    # ---- asked by the trainer ------------------------------------------------------------------------------------------

    def add_loss(self, loss: Tensor, records: list[str]) -> None:
        """The loss of a micro-batch, and the ids of its records."""
        self.records += records
        if not torch.isfinite(loss):
            self.losses.append(loss.item())
            self.suspects += records

    def must_skip(
        self, grad_norm: float | Tensor, accelerator: Accelerator, state: TrainerState, output_dir: str
    ) -> bool:
        """Whether this step is skipped, in all processes if it is in one. Raises UserError at the limit."""
        norm = float(grad_norm)
        bad = torch.tensor([len(self.losses), not torch.isfinite(torch.tensor(norm))], device=accelerator.device)
        if accelerator.num_processes > 1:
            bad = accelerator.reduce(bad, "sum")
        bad_losses, bad_norms = bad.tolist()
        if not bad_losses and not bad_norms:
            self.in_a_row = 0
            return False
        self.total += 1
        scaler = accelerator.scaler
        if scaler is None or bad_losses or scaler.get_scale() <= 1:
            self._report(norm, state, output_dir)
        return True

    def factor(self, state: TrainerState) -> float:
        """The factor of learning rates and gradient-norm limit in the current step."""
        recovers = self.last is not None and state.global_step - self.last <= self.recovery_steps
        return self.recovery_factor if recovers else 1.0

    def _report(self, norm: float, state: TrainerState, output_dir: str) -> None:
        self.in_a_row += 1
        self.last = state.global_step
        losses, suspects, records = map(gather_object, (self.losses, self.suspects, self.records))
        records = suspects or records
        reason = f"the loss is {losses[0]}" if losses else f"the gradient norm is {norm}"
        state.log_history.append({"step": state.global_step + 1, "epoch": state.epoch, SKIPPED: records})
        say(
            f"warning: step {state.global_step + 1} was skipped, because {reason}. Records: {join_names(records)}. Learning "
            f"rates and max_grad_norm are multiplied by {self.recovery_factor:g} for {self.recovery_steps} steps"
        )
        if self.in_a_row == self.limit:
            checkpoint, _ = last_whole_checkpoint(Path(output_dir))
            remedy = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was saved before"
            raise UserError(
                f"training stopped at step {state.global_step + 1}: {self.in_a_row} steps in a row were skipped, because the "
                f"loss or the gradient was not finite (the last time, {reason}; records: {join_names(records)}). {remedy}. Check "
                f"these records with make check, or lower learning_rate. {OTHER_PRECISION}."
            )

    # ---- called by transformers ----------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        """Continue from what a resumed run had skipped."""
        skipped = [entry["step"] - 1 for entry in state.log_history if SKIPPED in entry]
        self.last = skipped[-1] if skipped else None
        self.in_a_row = next((n for n in range(len(skipped) + 1) if state.global_step - 1 - n not in skipped), 0)
        self.max_grad_norm = args.max_grad_norm

    def on_step_begin(self, args, state, control, **kwargs):
        self._start_step()
        args.max_grad_norm = self.max_grad_norm * self.factor(state)

    def on_step_end(self, args, state, control, **kwargs):
        args.max_grad_norm = self.max_grad_norm  # a checkpoint saves the arguments

    def on_train_end(self, args, state, control, **kwargs):
        """Raises UserError if the run ends in skipped steps: such weights are finite, but their losses are not."""
        if self.in_a_row > 1:
            raise UserError(
                f"training diverged: the last {self.in_a_row} of {state.global_step} steps were skipped, because the loss or a "
                f"gradient was not finite. The final model was not saved; lower learning_rate or raise warmup_steps."
            )
        if self.total:
            say(
                f"note: {self.total} of {state.global_step} steps were skipped, because the loss or a gradient was not finite"
            )
