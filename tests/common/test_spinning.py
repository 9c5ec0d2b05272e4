"""OpenMP's spinning is limited before torch is loaded, unless the user has chosen how threads wait."""

import os
import subprocess
import sys

import pytest

from boxtune.common.spinning import SPIN_COUNT
from tests.helpers.records import ROOT

# Stands for the first library that loads OpenMP.
REPORT = "import os\nprint('GOMP_SPINCOUNT', os.environ.get('GOMP_SPINCOUNT'))\nos._exit(0)\n"
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "peft", "trl")


def output_of(*words: str, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, *words]
    result = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=120)
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("train_sft.py", "-h"),
        ("check_recipe.py", "-h"),
        ("merge_adapter.py", "-h"),
        ("evaluate.py", "--ckpt", "/nowhere"),
        ("serve.py", "--ckpt", "/nowhere"),
    ],
)
def test_every_script_limits_spinning_before_it_loads_torch(words, tmp_path):
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text(REPORT)
    first = {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    assert output_of(*words, **first) == f"GOMP_SPINCOUNT {SPIN_COUNT}\n"
    assert output_of(*words, **first, GOMP_SPINCOUNT="7") == "GOMP_SPINCOUNT 7\n"
    assert output_of(*words, **first, OMP_WAIT_POLICY="active") == "GOMP_SPINCOUNT None\n"


@pytest.mark.skipif(sys.platform != "linux", reason="torch loads libgomp on Linux only")
def test_the_library_that_torch_loads_reads_the_limit():
    code = "from boxtune.common.spinning import limit_spinning\nlimit_spinning()\nimport torch"
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in output_of("-c", code, OMP_DISPLAY_ENV="verbose")


def test_importing_evaluate_changes_no_variable():
    code = "import os, evaluate\nprint('GOMP_SPINCOUNT' in os.environ)"
    assert output_of("-c", code) == "False\n"
