"""Callbacks of a training run."""

import signal
from collections.abc import Callable

import torch
from transformers import TrainerCallback

from boxtune.batching.variation import Variation


class InterruptCallback(TrainerCallback):
    """Ctrl-C and SIGTERM finish the step, save a checkpoint and stop; a second Ctrl-C stops at once."""

    def __init__(self):
        self.interrupted = False
        self.stopped = False
        self._previous = {}

    def _request_stop(self, signum, frame):
        self.interrupted = True
        print("\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once", flush=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_begin(self, args, state, control, **kwargs):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request_stop)

    def on_step_end(self, args, state, control, **kwargs):
        self._agree(args)
        if self.interrupted:
            self.stopped = control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            # With a limit of 1 the trainer ends by removing all checkpoints but the best, this one as well.
            args.save_total_limit = None

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped:  # the step has saved all there is
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._agree(args)

    def _agree(self, args) -> None:
        """All processes must stop at the same step, or those that go on wait for the others forever."""
        if args.world_size > 1:
            flag = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(flag)
            if flag.item() > 0:  # a signal may have come meanwhile, so the flag is never taken back
                self.interrupted = True


class BeginCallback(TrainerCallback):
    """Calls `begin` in the first process once training begins: what was to be resumed from has been read by then."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.begin()


class EpochCallback(TrainerCallback):
    """Tells a variation, and every copy of it in the data loader's workers, which epoch begins."""

    def __init__(self, variation: Variation):
        self.variation = variation

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.variation.epoch.fill_(int(state.epoch or 0))
