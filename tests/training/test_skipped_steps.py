"""Steps whose loss or gradient is not finite: a run with a poisoned model, and fp16 with the real optimizer and scaler."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from boxtune.batching.encoder import expected_input_size
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.models.head_files import attach_head, head_weights
from boxtune.models.processors import load_processor
from boxtune.training import checkpoint_trainer, setup
from boxtune.training.skipped_steps import SKIPPED, SkippedSteps
from tests.helpers.training import log_history, train

OPTIONS = ("--save_steps", 1, "--save_total_limit", 9, "--learning_rate", 1e-3, "--warmup_steps", 0)


@pytest.fixture
def poison(monkeypatch):
    """`poison(steps, what)`: in these steps (0 is the first) of the next run, the "loss" or the "gradient" of the model is NaN.

    Returns a list that will hold the number of image patches of each step's batch.
    """
    build_model = setup.build_model

    def prepare(steps, what: str = "loss") -> list[int]:
        patches: list[int] = []

        def spoil(module, args, output):
            if not module.training:
                return output
            patches.append(len(output))
            if len(patches) - 1 not in steps:
                return output
            if what == "loss":
                return output * torch.nan
            output.register_hook(lambda gradient: gradient * torch.nan)
            return output

        def build(*args):
            model = build_model(*args)
            model.model.visual.blocks[-1].register_forward_hook(spoil)
            return model

        monkeypatch.setattr(setup, "build_model", build)
        return patches

    return prepare


def saved(run: Path, step: int) -> list[torch.Tensor]:
    """The weights and the optimizer's moments of a checkpoint."""
    weights = load_file(run / f"checkpoint-{step}" / "adapter_model.safetensors")
    state = torch.load(run / f"checkpoint-{step}" / "optimizer.pt")["state"]
    return [*weights.values(), *(tensor for moments in state.values() for tensor in moments.values())]


def patch_counts(data: Path) -> dict[str, int]:
    """{record id: number of its image patches}"""
    processor = load_processor("assets/tiny_qwen3_vl", None, 4096, 50176)
    side = processor.image_processor.patch_size
    sizes = {r["id"]: expected_input_size(processor, (r["height"], r["width"])) for r in read_records(data, "train")}
    return {name: height * width // side**2 for name, (height, width) in sizes.items()}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_poisoned_step_changes_nothing_and_names_its_records(what, poison, squares, tmp_path, capsys):
    patches = poison({1}, what)
    run = train(squares, tmp_path / "run", *OPTIONS, "--max_steps", 3, "--llm_lr", 1e-3, "--recovery_factor", 0.25)
    before, skipped, after = (saved(run, step) for step in (1, 2, 3))
    assert all(torch.equal(one, two) for one, two in zip(before, skipped, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(skipped, after, strict=True))
    ((name,),) = [entry[SKIPPED] for entry in log_history(run, 3) if SKIPPED in entry]
    assert patch_counts(squares)[name] == patches[1]
    printed = capsys.readouterr().out
    reason = "the loss is nan" if what == "loss" else "the gradient norm is nan"
    assert f"warning: step 2 was skipped, because {reason}. Records: {name}. Learning rates" in printed
    assert "note: 1 of 3 steps were skipped" in printed
    rows = [entry for entry in log_history(run, 3) if "loss" in entry]
    ratios = [row["learning_rate/llm"] / row["learning_rate"] for row in rows]
    assert ratios == pytest.approx([1, 1, 0.25])


def test_a_poisoned_gradient_of_the_detection_head_skips_the_step(squares, tmp_path, monkeypatch):
    """The head is clipped by itself, so the norm of the other gradients is finite."""
    steps = []

    def attach_poisoned(base, shape):
        head = attach_head(base, shape)
        weight = next(head.parameters())
        weight.register_hook(lambda gradient: gradient * torch.nan if steps.append(1) or len(steps) == 2 else gradient)
        return head

    monkeypatch.setattr(checkpoint_trainer, "attach_head", attach_poisoned)
    run = train(squares, tmp_path / "run", *OPTIONS, "--max_steps", 3, config="tiny_detection_head")
    heads = [load_file(head_weights(run / f"checkpoint-{step}")) for step in (1, 2, 3)]
    is_equal = [all(torch.equal(one[name], two[name]) for name in one) for one, two in pairwise(heads)]
    assert is_equal == [True, False]
    assert all(torch.equal(one, two) for one, two in zip(saved(run, 1), saved(run, 2), strict=True))
    assert [entry["step"] for entry in log_history(run, 3) if SKIPPED in entry] == [2]


def test_steps_that_are_skipped_in_a_row_end_the_run(poison, squares, tmp_path, capsys):
    poison({1, 3, 4}, "loss")
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", *OPTIONS, "--max_steps", 9, "--skipped_steps_limit", 2)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "training stopped at step 5: 2 steps in a row were skipped" in message
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoint-4'}" in message
    assert not (tmp_path / "run" / "final").exists()


def test_a_first_loss_that_is_not_finite_ends_the_run(poison, squares, tmp_path, capsys):
    poison({0}, "loss")
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run")
    assert stop.value.code == 2
    assert "the first loss is nan" in capsys.readouterr().err


def test_rates_and_norm_limit_are_lower_after_a_skipped_step_and_in_a_resumed_run(tmp_path):
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_grad_norm=0.8)
    state = TrainerState(global_step=8, max_steps=20)
    state.log_history = [{"step": step, "epoch": 0.5, SKIPPED: ["a"]} for step in (3, 7, 8)]
    event = arguments, state, TrainerControl()
    skipped_steps = SkippedSteps(limit=5, recovery_steps=2, recovery_factor=0.5)
    skipped_steps.on_train_begin(*event)
    assert skipped_steps.in_a_row == 2
    limits = []
    for state.global_step in (8, 9, 10):
        skipped_steps.on_step_begin(*event)
        limits.append((arguments.max_grad_norm, skipped_steps.factor(state)))
        skipped_steps.on_step_end(*event)
        assert arguments.max_grad_norm == 0.8
    assert limits == [(0.4, 0.5), (0.4, 0.5), (0.8, 1.0)]


class HalfPrecisionRun:
    """Steps of one weight with a loss scaler, as transformers makes them in fp16."""

    def __init__(self, folder, scale: float, limit: int = 3):
        arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True)  # resets accelerate's state
        Accelerator(cpu=True)
        self.weight = torch.nn.Parameter(torch.ones(1))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.accelerator = SimpleNamespace(scaler=scaler, device="cpu", num_processes=1)
        self.optimizer = AcceleratedOptimizer(torch.optim.SGD([self.weight], 0.1), scaler=scaler)
        self.skipped_steps = SkippedSteps(limit, recovery_steps=10, recovery_factor=0.5)
        self.state, self.folder = TrainerState(epoch=0.0), str(folder)
        self.event = arguments, self.state, TrainerControl()
        self.skipped_steps.on_train_begin(*self.event)

    def step(self, factor: float) -> None:
        self.skipped_steps.on_step_begin(*self.event)
        loss = self.weight.sum()
        self.skipped_steps.add_loss(loss, ["a"])
        self.accelerator.scaler.scale(factor * loss).backward()
        self.accelerator.scaler.unscale_(self.optimizer.optimizer)  # as accelerate does before clipping
        if self.skipped_steps.must_skip(self.weight.grad.norm(), self.accelerator, self.state, self.folder):
            self.weight.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1


def test_fp16_looks_for_its_loss_scale_without_a_warning(tmp_path, capsys):
    run = HalfPrecisionRun(tmp_path, scale=2.0**16)
    for _ in range(16):  # until the scale is 1
        run.step(float("inf"))
    assert run.weight.item() == 1 and run.accelerator.scaler.get_scale() == 1
    assert run.skipped_steps.total == 16 and run.skipped_steps.factor(run.state) == 1
    assert capsys.readouterr().out == ""
    run.step(1.0)
    assert run.weight.item() < 1


def test_fp16_training_stops_when_gradients_overflow_unscaled(tmp_path):
    run = HalfPrecisionRun(tmp_path, scale=4.0)
    for _ in range(4):  # two halvings, then two of three
        run.step(float("inf"))
    with pytest.raises(UserError, match=r"at step 5: 3 steps in a row .* No checkpoint .* --dtype float32"):
        run.step(float("inf"))
