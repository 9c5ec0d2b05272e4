"""Ask a model in batches that fit into memory, while the images of the next batch are read."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.common.errors import UserError
from boxtune.data.records import Record

T = TypeVar("T")


@torch.no_grad()  # not inference_mode: tensors that the model caches must stay usable in training
def in_batches(
    collator: DetectionCollator,
    questions: list[Record],
    batch_size: int,
    answer: Callable[[list[Record], ProcessedImages], list[T]],
) -> Iterator[tuple[T, float]]:
    """Yield what `answer` returns for every question, in order, and the seconds that it took.

    A thread reads the images of the next batch while the model answers, and is never further ahead than one batch. If a batch
    does not fit into memory, the batch size is halved for that batch and all later ones. Raises UserError if a single image does
    not fit.
    """
    start = 0
    with ThreadPoolExecutor(max_workers=1) as reader:

        def read(first: int) -> Future[ProcessedImages]:
            return reader.submit(collator.process_images, questions[first : first + batch_size])

        ahead = read(start) if questions else None
        while start < len(questions):
            rows = questions[start : start + batch_size]
            after = start + len(rows)
            began = time.perf_counter()
            images = ahead.result()
            ahead = read(after) if after < len(questions) else None  # while the model answers `rows`
            try:
                answers = answer(rows, images)
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise UserError(f"out of memory with a single image ({error}). Use a larger GPU or NF4.") from None
                batch_size = len(rows) // 2
                tqdm.write(
                    f"out of memory with a batch of {len(rows)} images; batch size is now {batch_size}", sys.stderr
                )
                ahead = read(start)
                continue
            start = after
            seconds = (time.perf_counter() - began) / len(rows)
            yield from ((one, seconds) for one in answers)
