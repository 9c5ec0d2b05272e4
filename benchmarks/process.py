"""A command in a process of its own: how long it took, and how much memory."""

import argparse
import os
import subprocess
import time
from pathlib import Path

from boxtune.common.errors import UserError


def at_least_one(text: str) -> int:
    """For argparse: a whole number."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def timed(words: list, log: Path, threads: int | None = None, folder: Path | None = None) -> tuple[float, int]:
    """(seconds, peak resident MiB) of a command, run in `folder`, whose output goes to `log`.

    The peak is at least that of this process, whose memory the command shares until it starts. `threads` is how many torch
    may use. Raises UserError with the log's last lines where the command fails.
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
