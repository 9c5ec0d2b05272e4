"""Run a command in its own process and measure its time and memory."""

import argparse
import os
import subprocess
import time
from pathlib import Path

from boxtune.common.errors import UserError


def at_least_one(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def timed(words: list, log: Path, threads: int | None = None, folder: Path | None = None) -> tuple[float, int]:
    """Run a command in `folder` with its output in `log`, and return (seconds, peak resident MiB).

    The peak is at least that of this process, because the command shares its memory until it starts. `threads` is the number of
    threads for torch. Raises UserError with the last lines of the log if the command fails.
    """
    words = list(map(str, words))
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    began = time.monotonic()
    with open(log, "w", encoding="utf-8") as lines:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=lines, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise UserError(f"{' '.join(words)} failed:", end)
    return time.monotonic() - began, usage.ru_maxrss // 1024
