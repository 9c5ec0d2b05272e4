"""serve.py under load: python -m benchmarks.serving --ckpt DIR --images FOLDER [--seconds 60] [--clients 100]

Starts serve.py with the model in its process, in float32, because in bfloat16 the images of a batch change each other's last
digits. First one client sends one image at a time, then many clients send at once. Every response is compared with the
offline prediction of its image, which is made here one image at a time.

Prints requests per second, the median and 95th percentile of the times until the response, the server's CPU seconds per
response, requests without a response (lost), responses that differ from the offline prediction (wrong), and the server's
memory. Exit code 1 if a request is lost or a response wrong.
"""

import argparse
import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.process import at_least_one
from boxtune import Detections, Detector
from boxtune.common.errors import UserError, command
from boxtune.common.files import is_image, path_argument

ROOT = Path(__file__).resolve().parent.parent
PRECISION = "float32"
TIMEOUT, START_SECONDS = 300, 600
# Sums over a batch of other shape differ in the last digits, and so do scores.
SCORE_TOLERANCE = 1e-3


@dataclass
class Result:
    """Times until the responses, and what went wrong."""

    clients: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the server; other programs hardly affect them
    times: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds

    def row(self) -> list[str]:
        p50, p95 = np.percentile(self.times, [50, 95]) if self.times else (np.nan, np.nan)
        numbers = [f"{self.rate:.2f}", f"{p50:.2f}", f"{p95:.2f}", str(len(self.lost)), str(len(self.wrong))]
        return [str(self.clients), str(len(self.times)), f"{self.cpu_seconds / max(1, len(self.times)):.3f}", *numbers]


@contextmanager
def serving(ckpt: str, max_batch: int, workers: int, log: Path) -> Iterator[tuple[psutil.Process, str]]:
    """(the process of serve.py, its address), once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--ckpt", ckpt, "--port", port, "--precision", PRECISION, "--timeout", TIMEOUT]
    words += ["--max-batch", max_batch, "--workers", workers]
    environment = {key: value for key, value in os.environ.items() if key != "BOXTUNE_API_KEY"}
    with log.open("w", encoding="utf-8") as lines:
        process = subprocess.Popen(
            [sys.executable, "serve.py", *map(str, words)], cwd=ROOT, env=environment, stderr=lines
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while not is_ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError("serve.py does not start:", log.read_text(encoding="utf-8").splitlines()[-5:])
            time.sleep(0.5)
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        process.wait()


def is_ready(address: str) -> bool:
    try:
        return httpx2.get(f"{address}/ready", timeout=TIMEOUT).status_code == 200
    except httpx2.TransportError:
        return False


def differs(response: dict, offline: Detections) -> bool:
    """Whether the response is another than the offline prediction."""
    rows = response["predictions"]
    centers = (offline.boxes_xyxy[:, :2] + offline.boxes_xyxy[:, 2:]) / 2
    expected = np.hstack([centers, offline.boxes_xyxy[:, 2:] - offline.boxes_xyxy[:, :2]])
    found = np.array([[row[key] for key in ("x", "y", "width", "height")] for row in rows]).reshape(-1, 4)
    scores = np.array([row["confidence"] for row in rows])
    return (
        [row["class"] for row in rows] != offline.labels
        or not np.array_equal(found, expected)
        or bool(np.any(np.abs(scores - offline.scores) > SCORE_TOLERANCE))
    )


async def load(address: str, images: list[Path], offline: list[Detections], clients: int, seconds: float) -> Result:
    """Send images from many clients, each with one request at a time, and wait for all responses."""
    result, numbers = Result(clients), itertools.count()
    files = [path.read_bytes() for path in images]
    began = time.monotonic()

    async def client() -> None:
        async with httpx2.AsyncClient(timeout=TIMEOUT) as http:
            while time.monotonic() - began < seconds:
                i = next(numbers) % len(files)
                sent = time.monotonic()
                try:
                    response = await http.post(f"{address}/detect", files={"file": files[i]})
                except httpx2.TransportError as error:
                    result.lost.append(f"{images[i].name}: {type(error).__name__}: {error}")
                    continue
                if response.status_code != 200:
                    result.lost.append(f"{images[i].name}: {response.status_code} {response.text[:100]}")
                    continue
                result.times.append(time.monotonic() - sent)
                if differs(response.json(), offline[i]):
                    result.wrong.append(images[i].name)

    await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.monotonic() - began
    return result


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", metavar="DIR", required=True, help="checkpoint that boxtune trained")
    parser.add_argument("--images", metavar="FOLDER", type=path_argument, required=True)
    parser.add_argument("--count", type=at_least_one, default=32, help="images of the folder to use (default 32)")
    parser.add_argument("--clients", type=at_least_one, default=100, help="default 100")
    parser.add_argument(
        "--seconds", type=float, default=60, help="under load (default 60); a third of it one at a time"
    )
    parser.add_argument("--max-batch", type=at_least_one, default=16, help="of serve.py (default 16)")
    parser.add_argument("--workers", type=at_least_one, default=1, help="of serve.py (default 1)")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    images = sorted(filter(is_image, args.images.iterdir()))[: args.count]
    if not images:
        raise UserError(f"{args.images} holds no images.")

    # ---- Offline predictions
    detector = Detector.from_pretrained(args.ckpt, precision=PRECISION)
    offline = [detector(image) for image in images]
    print(f"{len(images)} images with {sum(map(len, offline))} objects")
    del detector

    # ---- One client, then many
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(args.ckpt, args.max_batch, args.workers, Path(folder) / "log") as (process, address),
    ):
        memory = [process.memory_info().rss]
        for clients, seconds in ((1, args.seconds / 3), (args.clients, args.seconds)):
            before = sum(process.cpu_times()[:2])
            results.append(asyncio.run(load(address, images, offline, clients, seconds)))
            results[-1].cpu_seconds = sum(process.cpu_times()[:2]) - before
            memory.append(process.memory_info().rss)

    # ---- Table
    table = Table("clients", "responses", "CPU s each", "per second", "p50 (s)", "p95 (s)", "lost", "wrong")
    for result in results:
        table.add_row(*result.row())
    Console().print(table)
    print(f"throughput: {results[1].rate / results[0].rate:.2f} × one at a time")
    print("memory of the server (MiB):", " → ".join(f"{size >> 20}" for size in memory))
    problems = [line for result in results for line in (*result.lost, *result.wrong)]
    print("\n".join(problems[:20]))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
