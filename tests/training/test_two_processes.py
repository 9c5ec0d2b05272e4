"""Two CPU processes (gloo) as `accelerate launch` would start them on two GPUs."""

import importlib.util

import pytest
import yaml

from benchmarks.two_processes import FILES, environment_of, losses
from tests.helpers.records import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("file", ["fsdp", "zero2"])
def test_sharded_processes_train_like_one(squares, tmp_path, file):
    """DDP is tested with all kinds of losses in test_train.py."""
    if file == "zero2" and not importlib.util.find_spec("deepspeed"):
        pytest.skip("DeepSpeed is not installed")
    one, two = losses(squares, tmp_path / "one", None), losses(squares, tmp_path / "two", file)
    assert two == pytest.approx(one, rel=2e-3)  # sums of float32 in another order
    assert (tmp_path / "two" / "final" / "adapter_model.safetensors").is_file()


def test_every_accelerate_file_is_used():
    names = {path.stem for path in (ROOT / "recipes" / "accelerate").glob("*.yaml")}
    assert names == set(FILES)
    kinds = {
        name: yaml.safe_load((ROOT / f"recipes/accelerate/{name}.yaml").read_text())["distributed_type"]
        for name in names
    }
    for name, kind in kinds.items():
        flags = {
            key for key, value in environment_of(name).items() if key.startswith("ACCELERATE_USE_") and value == "true"
        }
        expected = {"FSDP": {"ACCELERATE_USE_FSDP"}, "DEEPSPEED": {"ACCELERATE_USE_DEEPSPEED"}}.get(kind, set())
        assert flags - {"ACCELERATE_USE_CPU"} == expected
