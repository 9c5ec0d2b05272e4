"""What a machine lacks is reported before anything is loaded."""

from pathlib import Path

import pytest

from boxtune.common.errors import UserError
from boxtune.training.machine import compiler_problems, require_machine, workers_that_fit
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
    assert many.dataloader_num_workers == 4  # the recipe is left as it was
    assert workers_that_fit(training(), 10**12, Path("/no/such/place")) == (4, None)
