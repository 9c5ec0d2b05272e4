"""The HTTP API over the embedded model, and images to send to it."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import uvicorn
from fastapi import FastAPI
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from boxtune import Detections, Detector
from tests.helpers.records import ROOT
from tests.helpers.stated import stated

CLASSES = ["circle", "square", "star"]


def embedded_detector() -> Detector:
    """The embedded model, as if it had been trained on CLASSES. In float32 a batch gives the results of single images."""
    folder = ROOT / "assets" / "tiny_qwen3_vl"
    detector = Detector.from_pretrained(folder, device="cpu", precision="float32", max_new_tokens=48, **stated())
    grounding = replace(detector.checkpoint.grounding, classes=CLASSES)
    detector.checkpoint = replace(detector.checkpoint, grounding=grounding)
    return detector


def shapes(count: int, first: int = 0) -> list[Image.Image]:
    """Images of different sizes with a circle and a square."""
    images = []
    for i in range(first, first + count):
        image = Image.new("RGB", (160 + 24 * (i % 5), 140 + 18 * (i % 3)), (235, 240, 245))
        draw = ImageDraw.Draw(image)
        draw.ellipse((8 + 4 * i % 40, 10, 68 + 4 * i % 40, 70), fill=(220, 40 + 9 * i % 200, 30))
        draw.rectangle((84, 62 + 3 * i % 20, 138, 116 + 3 * i % 20), fill=(30, 60, 90 + 13 * i % 160))
        images.append(image)
    return images


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def upload(data: bytes, name: str = "photo.png") -> dict:
    """The argument `files` of a request that sends this file."""
    return {"file": (name, data)}


def assert_equal(response: dict, offline: Detections) -> None:
    """The response is the offline prediction of its image. In a batch of other images, scores differ in the last digits."""
    assert (response["image"]["width"], response["image"]["height"]) == offline.size
    rows = response["predictions"]
    assert [row["class"] for row in rows] == offline.labels
    assert [row["class_id"] for row in rows] == offline.class_ids.tolist()
    for row, (x0, y0, x1, y1), score in zip(rows, offline.boxes_xyxy.tolist(), offline.scores.tolist(), strict=True):
        assert [row[key] for key in ("x", "y", "width", "height")] == [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
        assert abs(row["confidence"] - score) < 1e-3


def wait_until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + 120
    while client.get("/ready").status_code != 200:
        assert time.monotonic() < deadline, "the model does not answer"
        time.sleep(0.05)


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of the app on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
