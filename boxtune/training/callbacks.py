"""Callbacks of a training run."""

import signal
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from boxtune.batching.batch_plan import PlannedBatches
from boxtune.batching.teachers import Teachers
from boxtune.batching.variation import Variation
from boxtune.training.console import say
from boxtune.training.sharded import ShardBatches


class InterruptCallback(TrainerCallback):
    """On Ctrl-C or SIGTERM, finish the step, save a checkpoint and stop. A second Ctrl-C stops immediately."""

    def __init__(self):
        self.interrupted = False
        self.stopped = False
        self._previous = {}

    def _request_stop(self, signum, frame):
        self.interrupted = True
        print("\nstopping after this step with a checkpoint; press Ctrl-C again to stop immediately", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_begin(self, args, state, control, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request_stop)

    def on_step_end(self, args, state, control, **kwargs):
        self._agree(args)
        if self.interrupted:
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            # With save_total_limit 1, the trainer would end by deleting every checkpoint but the best, including this one.
            args.save_total_limit = None

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped:  # on_step_end has already requested the checkpoint
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()
        self._agree(args)

    def restore(self) -> None:
        """Give signals back to whoever handled them before training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _agree(self, args) -> None:
        """Make all processes stop at the same step. Otherwise those that continue would wait for the others forever."""
        if args.world_size > 1:
            flag = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(flag)
            if flag.item() > 0:  # never reset: a signal may have arrived in the meantime
                self.interrupted = True


class BeginCallback(TrainerCallback):
    """Calls `begin` in the main process when training begins. By then, the checkpoint to resume from has been read."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.begin()


class EpochCallback(TrainerCallback):
    """Sets the epoch of what varies at the start of each epoch, including in the data loader's workers."""

    def __init__(self, *varying: Variation | Teachers | PlannedBatches | ShardBatches):
        self.varying = varying

    def on_epoch_begin(self, args, state, control, **kwargs):
        for part in self.varying:
            part.epoch.fill_(int(state.epoch or 0))


class ShortRunCallback(TrainerCallback):
    """Warns of a warm-up or an evaluation interval that a run is too short for."""

    def on_train_begin(self, args, state, control, **kwargs):
        warmup = args.get_warmup_steps(state.max_steps)
        if warmup >= state.max_steps:
            reached = args.learning_rate * state.max_steps / warmup
            say(
                f"warning: warmup_steps: {warmup} is not below the {state.max_steps} steps of this run, so the learning rate "
                f"reaches at most {reached:.2g} of {args.learning_rate:.2g}. Lower warmup_steps, or train for more steps"
            )
        if args.eval_strategy == "steps" and state.eval_steps > state.max_steps:
            say(
                f"warning: eval_steps: {state.eval_steps} exceeds the {state.max_steps} steps of this run, so it is evaluated "
                "only at its end. Lower eval_steps"
            )


# The metrics in the line printed after each evaluation: {key without "eval_": label}.
_SHOWN_METRICS = {
    "loss": "loss",
    "AP": "AP",
    "AP50": "AP50",
    "head_AP50": "head AP50",
    "f1": "F1",
    "mean_iou": "mean IoU",
    "fp": "FP",
    "fn": "FN",
    "unparsable": "unparsable",
}


class ProgressLine(TrainerCallback):
    """One progress bar for training and one printed line per evaluation.

    It replaces transformers' ProgressCallback, which prints each log entry as a dictionary and a new bar for each evaluation.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.is_evaluating = False
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # seconds; in a log file every update is a new line
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:  # entries of an evaluation have no "loss"; on_evaluate prints them
            loss, learning_rate = float(logs["loss"]), float(logs["learning_rate"])
            self.bar.set_postfix_str(f"loss {loss:.3f}, learning rate {learning_rate:.2g}", refresh=False)

    def on_prediction_step(self, args, state, control, **kwargs):
        if not self.is_evaluating:  # every change of the description redraws the bar
            self.is_evaluating = True
            self.bar.set_description("evaluating")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.is_evaluating = False
        self.bar.set_description("training")
        if not state.is_world_process_zero:
            return
        values = {label: metrics.get(f"eval_{key}") for key, label in _SHOWN_METRICS.items()}
        line = ", ".join(f"{label} {value:.4g}" for label, value in values.items() if value is not None)
        tqdm.write(f"evaluation at step {state.global_step}/{state.max_steps}: {line}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
