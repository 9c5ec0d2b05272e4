"""Train in two CPU processes and compare with one: python -m benchmarks.two_processes DATA [--files ddp fsdp fsdp_qlora zero2]

Each file of recipes/accelerate/ is turned into the environment that `accelerate launch` makes of it for GPUs; the processes then
talk over gloo. Prints the losses of the first three steps. zero2 needs DeepSpeed (pip install deepspeed).
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from boxtune.common.errors import UserError, command

ROOT = Path(__file__).resolve().parent.parent
FILES = ("ddp", "fsdp", "fsdp_qlora", "zero2")
STEPS = 3
OPTIONS = (
    *("--config", "tiny_nutrition_qlora", "--load_in_4bit", "false", "--max_steps", STEPS, "--logging_steps", 1),
    *(
        "--per_device_train_batch_size",
        1,
        "--gradient_accumulation_steps",
        2,
        "--eval_strategy",
        "no",
        "--eval_images",
        0,
    ),
    *("--save_steps", STEPS, "--warmup_steps", 0, "--report_to", "none"),
)


def environment_of(file: str) -> dict[str, str]:
    """The environment variables of `accelerate launch` with a file of recipes/accelerate, but in float32 and on the CPU."""
    words = ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{file}.yaml"), "train_sft.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ""
    args.mixed_precision = "no"
    made = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    return os.environ | made | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def losses(data: Path, out: Path, file: str | None, *options: object) -> list[float]:
    """The losses of the first steps in two processes launched with `file`, or in one process without it. The run is kept in
    `out`. Raises UserError if it fails."""
    script = ["train_sft.py", *OPTIONS, "--data_dir", data, "--output_dir", out, *options]
    launcher, environment = [], os.environ | {"OMP_NUM_THREADS": "1"}
    if file:
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", _free_port()]
        environment = environment_of(file)
    words = [sys.executable, *map(str, [*launcher, *script])]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the run with {file or 'one process'} failed:", (done.stdout + done.stderr).splitlines()[-15:])
    state = json.loads((out / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="a small prepared dataset")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for file in (None, *args.files):
            found = losses(args.data.resolve(), Path(folder) / (file or "one"), file)
            print(f"{file or 'one process'}: {', '.join(f'{loss:.4f}' for loss in found)}", flush=True)


if __name__ == "__main__":
    main()
