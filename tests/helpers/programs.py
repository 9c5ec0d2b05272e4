"""Servers that tests start as programs of their own."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.helpers.records import ROOT

START_SECONDS = 300


@contextmanager
def running(
    words: Sequence[str], log: Path, health: str, environment: Mapping[str, str] = os.environ
) -> Iterator[tuple[subprocess.Popen, str]]:
    """(the process, its address) of a server, once it answers GET `health` with 200. It is stopped at the end of the block.

    words: its command, to which --port and a free port are added. log: the file that gets its output.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*words, "--port", str(port)], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(address + health):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3000:]
            time.sleep(0.2)
        yield process, address
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=30).status_code == 200
    except httpx2.TransportError:
        return False
