"""Speed of training on a CPU for several spin counts of OpenMP: python -m benchmarks.spinning [--turns 5] [--steps 12]

Trains the recipe tiny_nutrition_qlora for a few steps in its own process, once for each way of waiting, alone and beside a
program that keeps two cores busy. The ways take turns, so that other programs on the machine slow down all of them. The result
is the median over the turns. SPIN_COUNT in boxtune/common/spinning.py should lose at most 3 % alone against libgomp's
default, and keep at least 70 % of the speed of `passive` beside the busy program. Run it on an otherwise idle machine.
"""

import argparse
import ast
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.process import at_least_one
from boxtune.common.errors import UserError, command

ROOT = Path(__file__).resolve().parent.parent
DEFAULT, PASSIVE = "libgomp's default", "passive"
WAYS = {
    DEFAULT: {"GOMP_SPINCOUNT": "300000"},
    PASSIVE: {"OMP_WAIT_POLICY": "passive"},
    **{count: {"GOMP_SPINCOUNT": count} for count in ("1000", "10000", "15000", "30000", "100000")},
}
# Both threads compute hashes, for which Python releases its lock, and end with the benchmark even if that is killed.
BUSY = """
import hashlib, os, threading
parent = os.getppid()
def work():
    while os.getppid() == parent:
        hashlib.sha256(bytes(1 << 24))
for _ in range(2):
    threading.Thread(target=work).start()
"""


@contextmanager
def busy_program() -> Iterator[None]:
    """A program that keeps two cores busy inside the `with` block."""
    program = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        program.kill()
        program.wait()


def steps_per_second(waiting: dict[str, str], steps: int, limit: int, data_dir: str) -> float:
    """The speed of one run, without the time to start; 0 if it does not end within `limit` seconds."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *(
                "train_sft.py",
                "--config",
                "tiny_nutrition_qlora",
                "--data_dir",
                data_dir,
                "--output_dir",
                f"{folder}/run",
            ),
            *("--max_steps", str(steps), "--eval_strategy", "no", "--save_strategy", "no", "--eval_images", "0"),
            *("--logging_steps", "1000", "--disable_tqdm", "true"),
        ]
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment | waiting,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return 0.0
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed:", done.stderr.splitlines()[-12:])
    report = next(ast.literal_eval(line) for line in done.stdout.splitlines() if "'train_runtime'" in line)
    return steps / float(report["train_runtime"])


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=at_least_one, default=5)
    parser.add_argument("--steps", type=at_least_one, default=12)
    parser.add_argument(
        "--limit", type=at_least_one, default=240, help="seconds after which a run is stopped (default %(default)s)"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--data-dir", default="data/nutrition", help="prepared dataset (default %(default)s)")
    args = parser.parse_args(argv)

    alone: dict[str, list[float]] = {way: [] for way in args.ways}
    beside: dict[str, list[float]] = {way: [] for way in args.ways}
    for turn in range(args.turns):
        for way in args.ways:
            alone[way].append(steps_per_second(WAYS[way], args.steps, args.limit, args.data_dir))
            with busy_program():
                beside[way].append(steps_per_second(WAYS[way], args.steps, args.limit, args.data_dir))
            print(
                f"turn {turn + 1}, {way}: alone {alone[way][-1]:.3f}, beside a busy program {beside[way][-1]:.3f}",
                flush=True,
            )

    title = f"steps per second, {args.turns} turns of {args.steps} steps"
    table = Table("waiting", "alone", f"of {DEFAULT}", "beside a busy program", f"of {PASSIVE}", title=title)
    for way in args.ways:
        table.add_row(way, *_with_ratio(alone, way, DEFAULT), *_with_ratio(beside, way, PASSIVE))
    Console().print(table)


def _with_ratio(speeds: dict[str, list[float]], way: str, reference: str) -> tuple[str, str]:
    """The median speed of a way of waiting, and its ratio to that of the reference if both were measured."""
    median = statistics.median(speeds[way])
    base = statistics.median(speeds[reference]) if reference in speeds else 0.0
    return f"{median:.3f}" if median else "too slow", f"{median / base:.2f}" if base else ""


if __name__ == "__main__":
    main()
