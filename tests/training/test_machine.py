"""What a machine lacks is said before anything is loaded."""

from pathlib import Path

import pytest

from boxtune.common.errors import UserError
from boxtune.training.machine import compiler_problems, fit_workers, require_machine
from boxtune.training.recipe import load_recipe


def test_several_gpus_need_as_many_processes():
    require_machine(0)
    require_machine(1)
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=0 make train .*ddp.yaml"):
        require_machine(2)


def test_a_compiler_that_the_loss_needs_on_a_gpu_is_missed_beforehand(tmp_path, monkeypatch):
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
    """What they may hold is measured on the disk of tmp_path, which holds some batches and not a million times as much."""

    def training(*options: str):
        return load_recipe(["--config", "tiny_nutrition_qlora", "--dataloader_num_workers", "4", *options]).training

    few = training("--eval_strategy", "no", "--per_device_train_batch_size", "1")
    assert fit_workers(few, 1_000_000, tmp_path) is None and few.dataloader_num_workers == 4
    many = training("--per_device_eval_batch_size", "1000000")
    assert "192,000,000 MB of shared memory" in fit_workers(many, 1_000_000, tmp_path)
    assert many.dataloader_num_workers == 0
    assert fit_workers(training(), 10**12, Path("/no/such/place")) is None
