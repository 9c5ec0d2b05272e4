"""Decoding every picture once, fully, before anything is written."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from boxtune.data.images import load_image, stored_and_upright_size
from boxtune.data.records import MAX_ASPECT_RATIO

# A torn header may claim any size, and decoding would then take all memory. Larger scans than this are not trained on.
_MAX_PIXELS = 500_000_000


@dataclass(frozen=True)
class ImageFacts:
    """(width, height) as stored and upright, the EXIF orientation between them, and a hash of the file's bytes."""

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int
    digest: bytes


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used. `missing` says that there is no such file, so that it may lie elsewhere."""

    reason: str
    missing: bool = False


def check_image(path: Path) -> ImageFacts | BadImage:
    """The facts of an image that decodes, or the reason why it cannot be used."""
    if not os.path.isfile(path):
        return BadImage(f"missing: {path}", missing=True)
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                return BadImage(f"{path}: the header claims {image.width} × {image.height} pixels")
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            stored, upright = stored_and_upright_size(image)
        if max(upright) > MAX_ASPECT_RATIO * min(upright):
            return BadImage(f"{path}: {upright[0]} × {upright[1]} exceeds the aspect ratio of {MAX_ASPECT_RATIO}")
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
    """(width, height) by the file's header alone; None where it cannot be read, which `check_image` reports."""
    try:
        with Image.open(path) as image:
            return stored_and_upright_size(image)[1]
    except Exception:  # as above
        return None


def check_images(paths: Sequence[str | Path], workers: int) -> Iterator[ImageFacts | BadImage]:
    """`check_image` of every path, in order, by so many threads (Pillow decodes without the interpreter's lock)."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield from tqdm(_in_turn(pool, paths, 16 * workers), total=len(paths), desc="pictures", unit="", disable=None)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_turn(pool: ThreadPoolExecutor, paths: Sequence[str | Path], ahead: int) -> Iterator[ImageFacts | BadImage]:
    """As pool.map, which would at once make a future of two kilobytes for every path, but only so many ahead."""
    waiting: deque[Future] = deque()
    for path in paths:
        waiting.append(pool.submit(check_image, Path(path)))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
