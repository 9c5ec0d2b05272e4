"""Which questions share a batch, and what happens to the others when one fails or gives up. No model is needed."""

import asyncio
import threading
import time

import pytest
from PIL import Image

from boxtune.serving.batching import Batcher, Question, warm_up
from boxtune.serving.metrics import Metrics


def question(width: int, classes=None, threshold=None) -> Question:
    return Question(Image.new("RGB", (width, 10)), classes, threshold)


def widths(questions) -> list[int]:
    return [one.image.width for one in questions]


class Model:
    """Answers with the widths of the images, and keeps the batches that it was asked."""

    def __init__(self, seconds: float = 0.0, refuses: int = 0):
        self.batches, self.seconds, self.refuses = [], seconds, refuses

    def __call__(self, questions):
        self.batches.append(widths(questions))
        time.sleep(self.seconds)
        if self.refuses in widths(questions):
            raise RuntimeError(f"width {self.refuses}")
        return widths(questions)


def ask_all(model, questions, max_batch=4, max_wait=0.05, workers=1):
    """(the answers or errors in the order of the questions, seconds)."""

    async def run():
        batcher = Batcher([model] * workers, max_batch, max_wait, Metrics())
        async with batcher.running():
            began = time.monotonic()
            asked = [asyncio.create_task(batcher.ask(one)) for one in questions]
            return await asyncio.gather(*asked, return_exceptions=True), time.monotonic() - began

    return asyncio.run(run())


def test_questions_that_wait_share_batches_and_each_gets_its_own_answer():
    model = Model()
    answers, _ = ask_all(model, [question(width) for width in range(1, 11)])
    assert answers == list(range(1, 11))
    assert model.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_full_batch_does_not_wait_and_a_single_question_waits_no_longer_than_told():
    assert ask_all(Model(), [question(width) for width in (1, 2)], max_batch=2, max_wait=30)[1] < 10
    assert 0.2 <= ask_all(Model(), [question(1)], max_wait=0.2)[1] < 10


def test_questions_about_other_classes_or_thresholds_are_asked_apart_and_none_waits_forever():
    model = Model()
    cats, dogs = ("cat",), ("dog",)
    questions = [question(1, cats), question(2, dogs), question(3, cats), question(4, cats, 0.5)]
    assert ask_all(model, questions)[0] == [1, 2, 3, 4]
    assert model.batches == [[1, 3], [2], [4]]


def test_an_image_that_fails_costs_no_other_image_its_answer():
    model = Model(refuses=2)
    answers, _ = ask_all(model, [question(width) for width in (1, 2, 3)])
    assert answers[0] == 1 and answers[2] == 3
    assert isinstance(answers[1], RuntimeError)
    assert model.batches == [[1, 2, 3], [1], [2], [3]]


def test_a_question_whose_request_ended_is_not_asked():
    async def run():
        model = Model(seconds=0.2)
        batcher = Batcher([model], 1, 0, Metrics())
        async with batcher.running():
            first = asyncio.create_task(batcher.ask(question(1)))
            await asyncio.sleep(0.05)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batcher.ask(question(2)), 0.05)
            assert await batcher.ask(question(3)) == 3 and await first == 1
        return model.batches

    assert asyncio.run(run()) == [[1], [3]]


def test_several_workers_ask_at_the_same_time():
    together = threading.Barrier(3, timeout=20)  # passes only if three threads wait at it

    def model(questions):
        together.wait()
        return widths(questions)

    answers, _ = ask_all(model, [question(width) for width in (1, 2, 3)], max_batch=1, workers=3)
    assert answers == [1, 2, 3]


def test_warming_up_asks_until_there_is_an_answer():
    failures = [RuntimeError("starting"), RuntimeError("starting")]

    def model(questions):
        if failures:
            raise failures.pop()
        return widths(questions)

    async def run():
        batcher = Batcher([model], 1, 0, Metrics())
        async with batcher.running():
            await asyncio.wait_for(warm_up(batcher, question(1), pause=0.01), 20)

    asyncio.run(run())
    assert not failures
