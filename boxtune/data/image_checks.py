"""Checking images: every one is fully decoded once, before anything is written."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from boxtune.data.images import aspect_problem, load_image, stored_and_upright_size

# A corrupt header may claim any size, and decoding would then use all memory. No training image is larger than this.
_MAX_PIXELS = 500_000_000


@dataclass(frozen=True)
class ImageFacts:
    """A valid image: (width, height) as stored and upright, the EXIF orientation between them, SHA-256 of the file."""

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int
    digest: bytes


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used. With `missing` there is no file at the path, so it may be somewhere else."""

    reason: str
    missing: bool = False


def check_image(path: Path) -> ImageFacts | BadImage:
    """Decode an image fully. Returns its facts, or why it cannot be used."""
    if not os.path.isfile(path):
        return BadImage(f"missing: {path}", missing=True)
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                return BadImage(f"{path}: the header claims {image.width} × {image.height} pixels")
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            stored, upright = stored_and_upright_size(image)
        if problem := aspect_problem(*upright):
            return BadImage(f"{path}: {problem}")
        size = load_image(path).size
    except UnidentifiedImageError:
        return BadImage(f"{path}: not an image that Pillow can read")
    except Exception as error:  # decoders raise any exception on corrupt files; the reason is reported
        return BadImage(f"{path}: corrupt: {error}")
    if size != upright:
        return BadImage(
            f"{path}: corrupt: the header says {upright[0]} × {upright[1]}, the pixels are {size[0]} × {size[1]}"
        )
    return ImageFacts(stored, upright, orientation, hashlib.sha256(path.read_bytes()).digest())


def upright_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of the upright image from the file's header alone; None if it cannot be read (see `check_image`)."""
    try:
        with Image.open(path) as image:
            return stored_and_upright_size(image)[1]
    except Exception:  # decoders raise any exception on corrupt files
        return None


def check_images(paths: Sequence[str | Path], workers: int) -> Iterator[ImageFacts | BadImage]:
    """`check_image` of every path, in order, in `workers` threads (Pillow releases the interpreter lock while decoding)."""
    pool = ThreadPoolExecutor(workers)
    try:
        checks = _check_in_order(pool, paths, ahead=16 * workers)
        yield from tqdm(checks, total=len(paths), desc="images", unit="", disable=None)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_in_order(
    pool: ThreadPoolExecutor, paths: Sequence[str | Path], ahead: int
) -> Iterator[ImageFacts | BadImage]:
    """Like pool.map, but with at most `ahead` futures waiting: pool.map creates one of two kilobytes per path at once."""
    waiting: deque[Future[ImageFacts | BadImage]] = deque()
    for path in paths:
        waiting.append(pool.submit(check_image, Path(path)))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
