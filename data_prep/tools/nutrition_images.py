"""The generated product images, numbered from 0: their ids, splits and JPEG files."""

import io
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from tqdm import tqdm

from data_prep.products.scenes import draw_image

CATEGORY = "nutrition-table"


class JpegImage(NamedTuple):
    """One generated image as a JPEG file, with the boxes of its nutrition tables in pixels."""

    jpeg: bytes
    width: int
    height: int
    boxes_xyxy: list[list[float]]
    view: str  # "close" (the label was photographed) or "distant" (whole packages)


def split_of(index: int) -> str:
    """Eight of ten images are for training. The split of an image does not change when more images are generated."""
    return {8: "validation", 9: "test"}.get(index % 10, "train")


def image_id(index: int) -> str:
    return f"product_{index:06d}"


def generate_images(num_images: int, seed: int, size: int) -> Iterator[tuple[int, JpegImage]]:
    """(index, image), in order, drawn by as many processes as there are cores."""
    # Ctrl-C is for this process only; otherwise each of the others would print a traceback.
    pool = ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        drawn = pool.map(partial(_draw, seed, size), range(num_images), chunksize=8)
        yield from enumerate(tqdm(drawn, "drawing", num_images, unit="image", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(seed: int, size: int, index: int) -> JpegImage:
    drawn, buffer = draw_image(seed, index, size), io.BytesIO()
    drawn.image.save(buffer, "JPEG", quality=drawn.jpeg_quality)
    return JpegImage(buffer.getvalue(), drawn.image.width, drawn.image.height, drawn.boxes_xyxy, drawn.view)
