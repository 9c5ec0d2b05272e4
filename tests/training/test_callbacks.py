"""The callback that warns of a schedule that does not fit the run."""

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from boxtune.training.callbacks import ShortRunCallback


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
