"""What answers the requests: a detector behind a queue, and its limits."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.requests import Request

import boxtune
from boxtune.common.errors import UserError
from boxtune.inference.detections import Detections
from boxtune.inference.detector import Detector
from boxtune.inference.inputs import check_classes
from boxtune.reports.model_card import model_name
from boxtune.serving.batching import Batcher, Question, warm_up
from boxtune.serving.bodies import read_body
from boxtune.serving.errors import RequestError, busy
from boxtune.serving.images import FORMATS, decode, open_image
from boxtune.serving.limits import Admission, Limits, Place
from boxtune.serving.metrics import Metrics
from boxtune.serving.schema import Asked

RGB_BYTES = 3
# Trained models know names as these; for one without classes, any name serves to try whether it answers.
_FIRST_CLASS, _FIRST_IMAGE = "object", (64, 64)


class Service:
    """A detector that many requests share.

    max_batch: images that the model is asked about at once. max_wait: seconds that a request waits for others to share a batch.
    workers: batches that the model in this process answers at the same time. A server batches requests itself, so it is asked
    `max_batch` questions at the same time instead.
    """

    def __init__(self, detector: Detector, limits: Limits, max_batch: int, max_wait: float, workers: int = 1):
        self.detector, self.limits, self.max_batch = detector, limits, max_batch
        self.metrics = Metrics()
        self.admission = Admission(limits)
        self.metrics.queue.set_function(lambda: self.admission.requests)
        self.metrics.memory.set_function(lambda: self.admission.bytes)
        if detector.servers:
            rows, detectors = 1, [detector] * max_batch * len(detector.servers)
        else:
            rows, detectors = max_batch, [detector, *(detector.with_shared_weights() for _ in range(workers - 1))]
        self.batcher = Batcher([partial(_ask, one) for one in detectors], rows, max_wait, self.metrics)
        self.decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self.is_ready = False

    async def warm_up(self) -> None:
        """Be ready once the model has answered."""
        classes = None if self.detector.classes else (_FIRST_CLASS,)
        await warm_up(self.batcher, Question(Image.new("RGB", _FIRST_IMAGE, "gray"), classes))
        self.is_ready = True

    async def detect(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        """(the response to POST /detect, the problems of the model's answer). Raises RequestError if the request is refused."""
        began = time.perf_counter()
        async with self.admitted() as place:
            data, asked = await read_body(request, place, self.limits.body_bytes, self.limits.seconds / 2)
            detections = await self.find(data, asked, place)
        width, height = detections.size
        request.state.facts.update(width=width, height=height, objects=len(detections), problems=detections.problems)
        return _response(detections, time.perf_counter() - began), detections.problems

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[Place]:
        """A place in the queue for a request that is answered before the block ends, or refused with RequestError."""
        with self.admission.enter() as place:
            try:
                async with asyncio.timeout(self.limits.seconds):
                    yield place
            except TimeoutError:
                raise busy(f"there was no response within {self.limits.seconds:g} seconds. Try again later.") from None
            except UserError:  # the batcher has logged it; the message may name this machine's folders and addresses
                raise busy("the model cannot answer; the server's log has the reason.") from None

    async def find(self, data: bytes, asked: Asked, place: Place) -> Detections:
        """The objects in an image file."""
        self._check_classes(asked)
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(self.decoders, open_image, data, self.limits.image_pixels)
        place.reserve(RGB_BYTES * opened.width * opened.height)
        image = await loop.run_in_executor(self.decoders, decode, opened)
        classes = tuple(asked.classes) if asked.classes else None
        detections = await self.batcher.ask(Question(image, classes, asked.threshold))
        self._count(detections)
        return detections

    def _check_classes(self, asked: Asked) -> None:
        try:
            check_classes(asked.classes or self.detector.classes)
        except UserError as error:
            raise RequestError(422, str(error), "classes") from None

    def _count(self, detections: Detections) -> None:
        self.metrics.objects.inc(len(detections))
        for kind in detections.problems:
            self.metrics.problems.labels(kind).inc()

    @property
    def name(self) -> str:
        """The checkpoint's name: that of its run, folder or Hub id."""
        path = self.detector.checkpoint.path
        return model_name(Path(path)) if Path(path).is_dir() else str(path)

    def info(self) -> dict[str, Any]:
        grounding = self.detector.checkpoint.grounding
        return {
            "checkpoint": self.name,
            "classes": self.detector.classes,
            "objects": "points" if grounding.get_codec().is_click else "boxes",
            "threshold": grounding.decoding.score_threshold,
            "codec": grounding.codec,
            "backend": "in-process" if not self.detector.servers else "server",
            "version": boxtune.__version__,
            "limits": {
                "body_bytes": self.limits.body_bytes,
                "image_pixels": self.limits.image_pixels,
                "formats": list(FORMATS),
            },
        }


def _ask(detector: Detector, questions: Sequence[Question]) -> list[Detections]:
    """Ask about all images at once. The questions name the same classes and threshold."""
    classes = questions[0].classes
    return detector(
        [question.image for question in questions],
        classes=None if classes is None else list(classes),
        threshold=questions[0].threshold,
        batch_size=len(questions),
    )


def _response(detections: Detections, seconds: float) -> dict[str, Any]:
    """The detections in the JSON of Roboflow's inference server: boxes by their center."""
    if len(detections.points_xy):
        places = [(x, y, 0.0, 0.0) for x, y in detections.points_xy.tolist()]
    else:
        places = [((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0) for x0, y0, x1, y1 in detections.boxes_xyxy.tolist()]
    rows = zip(places, detections.labels, detections.class_ids.tolist(), detections.scores.tolist(), strict=True)
    predictions = [
        {
            **dict(zip(("x", "y", "width", "height"), place, strict=True)),
            "class": label,
            "class_id": class_id,
            "confidence": score,
            "detection_id": str(uuid.uuid4()),
        }
        for place, label, class_id, score in rows
    ]
    width, height = detections.size
    return {"image": {"width": width, "height": height}, "predictions": predictions, "time": seconds}
