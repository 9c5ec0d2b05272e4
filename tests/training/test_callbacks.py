"""Callbacks of a training run, with the real optimizer and scaler."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from boxtune.common.errors import UserError
from boxtune.training.callbacks import MAX_SKIPPED_IN_A_ROW, ShortRunCallback, SkippedStepsCallback


class HalfPrecisionRun:
    """Steps of one weight with a loss scaler, as transformers makes them in fp16."""

    def __init__(self, folder):
        arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True)  # resets accelerate's state
        Accelerator(cpu=True)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.scaler = torch.amp.GradScaler("cpu")
        self.optimizer = AcceleratedOptimizer(torch.optim.SGD([self.weight], 0.1), scaler=self.scaler)
        self.callback = SkippedStepsCallback()
        self.state = TrainerState()
        self.event = arguments, self.state, TrainerControl()

    def step(self, factor: float) -> None:
        self.scaler.scale(factor * self.weight.sum()).backward()
        self.optimizer.step()
        self.callback.on_optimizer_step(*self.event, optimizer=self.optimizer)
        self.optimizer.zero_grad()
        self.state.global_step += 1


def test_fp16_training_stops_when_every_step_is_skipped(tmp_path):
    run = HalfPrecisionRun(tmp_path)
    run.step(1.0)
    learned = run.weight.item()
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        run.step(float("nan"))
    assert run.weight.item() == learned < 1  # nothing shows in the weights
    with pytest.raises(
        UserError, match=rf"at step {MAX_SKIPPED_IN_A_ROW + 1}: .* last {MAX_SKIPPED_IN_A_ROW} .*--dtype float32"
    ):
        run.step(float("nan"))


def test_skipped_steps_are_counted_and_a_finite_step_starts_a_new_row(tmp_path, capsys):
    run = HalfPrecisionRun(tmp_path)
    for _ in range(2):
        for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
            run.step(float("inf"))
        run.step(1.0)
    run.callback.on_train_end(*run.event)
    skipped = 2 * (MAX_SKIPPED_IN_A_ROW - 1)
    assert f"note: {skipped} of {skipped + 2} steps were skipped" in capsys.readouterr().out


def test_a_run_without_skipped_steps_says_nothing(tmp_path, capsys):
    run = HalfPrecisionRun(tmp_path)
    run.step(1.0)
    run.callback.on_train_end(*run.event)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "steps", "warnings"),
    [
        (
            {"warmup_steps": 50, "eval_steps": 100, "eval_strategy": "steps", "learning_rate": 1e-4},
            26,
            [
                "warning: warmup_steps: 50 is not below the 26 steps of this run, so the learning rate reaches at most "
                "5.2e-05 of 0.0001. Lower",
                "warning: eval_steps: 100 exceeds the 26 steps of this run, so it is evaluated only at its end",
            ],
        ),
        ({"warmup_steps": 50, "eval_steps": 100, "eval_strategy": "steps"}, 200, []),
        ({"warmup_steps": 0.1, "eval_steps": 100, "eval_strategy": "epoch"}, 26, []),
    ],
)
def test_a_run_that_is_too_short_for_its_schedule_is_reported(options, steps, warnings, tmp_path, capsys):
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **options)
    state = TrainerState(max_steps=steps)
    state.compute_steps(arguments, steps)
    ShortRunCallback().on_train_begin(arguments, state, TrainerControl())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(lines, warnings, strict=True))
