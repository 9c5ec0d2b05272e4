"""Kill a training at random moments and resume it: python -m benchmarks.kills DATA [--kills 20] [--seed 0]

Trains the embedded model for a few steps with a checkpoint after each, once without interruption, and once killed by SIGKILL at
random moments: while loading, in a step, or while saving. The final adapters must be equal bit for bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.process import at_least_one
from boxtune.common.errors import UserError, command
from boxtune.training.last_checkpoint import last_whole_checkpoint

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
OPTIONS = (
    *("--max_steps", STEPS, "--save_steps", 1, "--save_total_limit", 3, "--logging_steps", 1, "--lora_dropout", 0.1),
    *("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1, "--eval_strategy", "no"),
    *("--eval_images", 0, "--report_to", "none", "--augment", "resize", "color"),
)


def start(data: Path, run: Path, log: Path) -> subprocess.Popen:
    """Begin the run, or continue it if it has a checkpoint."""
    resumes = last_whole_checkpoint(run)[0] is not None
    more = ("--resume_from_checkpoint", "true") if resumes else ("--overwrite_output_dir", "true")
    words = (
        "train_sft.py",
        "--config",
        "tiny_nutrition_qlora",
        "--data_dir",
        data,
        "--output_dir",
        run,
        *OPTIONS,
        *more,
    )
    with open(log, "w", encoding="utf-8") as lines:
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            stdout=lines,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def killed_like_uninterrupted(data: Path, folder: Path, kills: int, seed: int) -> int:
    """How many times the run was killed before it ended. Raises UserError if it fails, or ends with other weights."""
    whole, killed, log = folder / "whole", folder / "killed", folder / "log.txt"
    _finish(start(data, whole, log), log)
    draw, done = random.Random(seed), 0
    while done < kills and not (killed / "final").is_dir():
        process, more = start(data, killed, log), draw.choice((0, 1, 1, 2, 3))
        last = _steps(killed) + more
        while process.poll() is None and _steps(killed) < last:  # 0 more: while it is loading
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 1))
        if process.poll() is not None:
            _finish(process, log)
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
    if not (killed / "final").is_dir():
        _finish(start(data, killed, log), log)
    weights, reference = (load_file(run / "final" / "adapter_model.safetensors") for run in (killed, whole))
    wrong = [name for name in reference if not torch.equal(weights[name], reference[name])]
    if wrong:
        raise UserError(f"after {done} kills, {len(wrong)} of {len(reference)} tensors differ:", wrong)
    return done


def _steps(run: Path) -> int:
    """The step of the newest checkpoint folder, complete or not."""
    return max((int(path.name.removeprefix("checkpoint-")) for path in run.glob("checkpoint-*")), default=0)


def _finish(process: subprocess.Popen, log: Path) -> None:
    if process.wait():
        end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise UserError("the run failed:", end)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="a small prepared dataset")
    parser.add_argument("--kills", type=at_least_one, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    left, runs = args.kills, 0
    while left:  # a run may end before its last kill; then another one begins
        with tempfile.TemporaryDirectory() as folder:
            done = killed_like_uninterrupted(args.data.resolve(), Path(folder), left, args.seed + runs)
        left, runs = left - done, runs + 1
        print(f"{done} kills in run {runs}: the final adapter equals that of an uninterrupted run", flush=True)


if __name__ == "__main__":
    main()
