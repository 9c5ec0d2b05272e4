"""Requests that wait are put together into batches: the model answers several images in little more time than one."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from PIL import Image

from boxtune.inference.detections import Detections
from boxtune.serving.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """An image, upright and RGB, the classes to look for and the least score; None: those of the checkpoint."""

    image: Image.Image
    classes: tuple[str, ...] | None = None
    threshold: float | None = None

    def can_share_a_batch(self, other: "Question") -> bool:
        return (self.classes, self.threshold) == (other.classes, other.threshold)


Answer = Callable[[Sequence[Question]], list[Detections]]


@dataclass(frozen=True, eq=False)
class _Waiting:
    question: Question
    response: asyncio.Future[Detections]
    since: float


class Batcher:
    """Answers questions in batches, in the order of arrival; questions about other classes wait for the next batch.

    answers: each asks the model in a thread of its own, so that the event loop stays free; as many batches are asked at the same
    time. max_batch: questions per batch. max_wait: seconds that the first question waits for others.
    """

    def __init__(self, answers: Sequence[Answer], max_batch: int, max_wait: float, metrics: Metrics):
        self._answers, self._max_batch, self._max_wait = answers, max_batch, max_wait
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()

    async def ask(self, question: Question) -> Detections:
        """The detections, or the error that the model raised for this image. If the caller gives up, the question is removed."""
        loop = asyncio.get_running_loop()
        entry = _Waiting(question, loop.create_future(), loop.time())
        self._waiting.append(entry)
        self._arrived.set()
        try:
            return await entry.response
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Questions are answered until the block ends."""
        with ThreadPoolExecutor(len(self._answers), thread_name_prefix="model") as pool:
            tasks = [asyncio.create_task(self._run(pool, answer)) for answer in self._answers]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, pool: ThreadPoolExecutor, answer: Answer) -> None:
        while True:
            batch = await self._next_batch()
            self._metrics.batch_size.observe(len(batch))
            questions = [entry.question for entry in batch]
            with self._metrics.batch_seconds.time():
                results = await asyncio.get_running_loop().run_in_executor(pool, _answers_or_errors, answer, questions)
            for entry, result in zip(batch, results, strict=True):
                if entry.response.done():  # its request ran out of time
                    continue
                if isinstance(result, Exception):
                    entry.response.set_exception(result)
                else:
                    entry.response.set_result(result)

    async def _next_batch(self) -> list[_Waiting]:
        """Wait until a batch is full, or until the first question has waited long enough."""
        loop = asyncio.get_running_loop()
        while True:
            batch = self._first_batch()
            left = batch[0].since + self._max_wait - loop.time() if batch else None
            if len(batch) == self._max_batch or (left is not None and left <= 0):
                for entry in batch:
                    self._waiting.remove(entry)
                return batch
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                continue

    def _first_batch(self) -> list[_Waiting]:
        """The questions that can share a batch with the one that has waited longest."""
        batch: list[_Waiting] = []
        for entry in self._waiting:
            if len(batch) < self._max_batch and entry.question.can_share_a_batch(self._waiting[0].question):
                batch.append(entry)
        return batch


def _answers_or_errors(answer: Answer, questions: list[Question]) -> list[Detections | Exception]:
    """If a batch fails, its questions are asked one by one, so that an image costs no other one its response."""
    try:
        return [*answer(questions)]
    except Exception as error:
        logger.exception("the model failed", extra={"fields": {"images": len(questions)}})
        if len(questions) == 1:
            return [error]
    return [result for question in questions for result in _answers_or_errors(answer, [question])]


async def warm_up(batcher: Batcher, question: Question, pause: float = 10) -> None:
    """Ask until the model has answered once."""
    began = time.monotonic()
    while True:
        try:
            await batcher.ask(question)
        except Exception as error:
            logger.error("not ready", extra={"fields": {"error": str(error)}})
            await asyncio.sleep(pause)
        else:
            logger.info("ready", extra={"fields": {"seconds": round(time.monotonic() - began, 3)}})
            return
