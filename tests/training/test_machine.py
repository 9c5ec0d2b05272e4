"""What a machine lacks is reported before anything is loaded."""

import re
from pathlib import Path

import pytest
import torch

from boxtune.common.errors import UserError
from boxtune.training import machine
from boxtune.training.machine import compiler_problems, flush_denormals, require_machine, workers_that_fit
from boxtune.training.recipe import load_recipe


def test_each_gpu_needs_its_own_process():
    require_machine(0)
    require_machine(1)
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=0 make train .*ddp.yaml"):
        require_machine(2)


def test_a_missing_compiler_for_the_gpu_loss_is_reported_first(tmp_path, monkeypatch):
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "cc")
    assert compiler_problems(tmp_path) == []
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = compiler_problems(tmp_path / "include")
    assert (
        "a C compiler (gcc or clang) and" in problem
        and "Python.h" in problem
        and "apt install gcc python3-dev" in problem
    )


def test_workers_need_shared_memory(tmp_path):
    """Free space is measured on the disk of tmp_path, which holds a few batches but not a million times as many."""

    def training(*options: str):
        return load_recipe(["--config", "tiny_nutrition_qlora", "--dataloader_num_workers", "4", *options]).training

    few = training("--eval_strategy", "no", "--per_device_train_batch_size", "1")
    assert workers_that_fit(few, 1_000_000, tmp_path) == (4, None)
    many = training("--per_device_eval_batch_size", "1000000")
    workers, note = workers_that_fit(many, 1_000_000, tmp_path)
    assert workers == 0 and "192,000,000 MB of shared memory" in note
    workers, note = workers_that_fit(few, 1_000_000, tmp_path, tokens_per_batch=10**9)
    assert workers == 0 and "196,608,000 MB" in note  # 10⁹ tokens of 32 × 32 pixels, instead of one image
    assert many.dataloader_num_workers == 4  # the recipe is left as it was
    assert workers_that_fit(training(), 10**12, Path("/no/such/place")) == (4, None)


@pytest.mark.parametrize(
    ("driver", "version", "built_for", "message"),
    [
        (None, "", "13.2", "this machine has none"),
        (
            (12, 2),
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
            "13.2",
            "the NVIDIA driver 535.104.05 supports CUDA up to 12.2, but torch .* was built for CUDA 13.2; install a driver for "
            "CUDA 13 or later, or a torch that was built for CUDA 12",
        ),
        ((12, 2), None, "13.2", "the NVIDIA driver supports CUDA up to 12.2"),
        (
            (13, 0),
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
            None,
            "built without CUDA, although the NVIDIA driver 580.65.06 is installed",
        ),
        ((13, 0), None, "13.2", "torch finds none, although the NVIDIA driver is installed"),  # same major version
    ],
)
def test_a_gpu_that_torch_cannot_use_is_explained(tmp_path, monkeypatch, driver, version, built_for, message):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_cuda_of_driver", lambda: driver)
    monkeypatch.setattr(machine, "DRIVER_VERSION", tmp_path / "version")
    if version is not None:
        (tmp_path / "version").write_text(version)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.search(message, machine.why_no_gpu())
    with pytest.raises(UserError, match=f"needs a CUDA GPU and .*{message}.*OVERLAY=tiny"):
        load_recipe(["--config", "nutrition_qlora"])
    # A recipe that also runs on a CPU does so, but not silently.
    notes = load_recipe(["--config", "nutrition_qlora", "--requires_gpu", "false"]).notes
    assert [re.search(message, note) is not None for note in notes] == ([True] if driver else [])


def test_a_hidden_gpu_is_explained(monkeypatch):
    monkeypatch.setattr(machine, "_cuda_of_driver", lambda: (13, 2))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "with CUDA_VISIBLE_DEVICES='7'" in machine.why_no_gpu()


def test_numbers_that_are_slow_on_a_cpu_become_zero():
    try:
        flush_denormals()
        assert (torch.tensor([1e-39]) * torch.ones(1)).item() == 0
    finally:
        torch.set_flush_denormal(False)
