"""The images of report.html: which ones to show, and their files in a size that fits the page."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boxtune.common.drawing import thumbnail, to_data_uri
from boxtune.data.images import load_image
from boxtune.metrics.matching import ImageMatch, worst_first

MAX_IMAGE_BYTES = 60_000
# Longest side in pixels. On a page with more than MANY images a smaller image looks better than one with stronger compression.
SIDE, SIDE_OF_MANY, MANY = 480, 360, 400
# Where even the strongest compression is too large, the image is made smaller, down to this side.
SMALLEST_SIDE = 40
WORKERS = 4


@dataclass(frozen=True)
class ShownImages:
    """The images that the page shows, by their positions in the split.

    positions: in the order of the split. random: those among them that were drawn, in the order of drawing. worst: how many
    were chosen for their errors. too_large: how many were left out because of the number of their objects.
    """

    positions: list[int]
    random: list[int]
    worst: int
    too_large: int


def choose_images(matches: list[ImageMatch], sizes: np.ndarray, limit: int, budget: int, seed: int) -> ShownImages:
    """At most `limit` images whose `sizes`, (images,), add up to at most `budget`: the worst half, and others drawn with `seed`.

    An image that needs more than half of the budget is left out.

    The draws come from all images, including the worst, so the random images give a fair impression of the split.
    """
    order = np.random.default_rng(seed).permutation(len(matches)).tolist()
    too_large = set(np.flatnonzero(sizes > budget // 2).tolist())
    if len(matches) <= limit and sizes.sum() <= budget:
        return ShownImages(sorted(order), order, worst=len(order), too_large=0)
    half = limit - limit // 2
    worst = [i for i in worst_first(matches) if i not in too_large][:half]
    worst = worst[: int(np.searchsorted(np.cumsum(sizes[worst]), budget // 2, side="right"))]
    shown, drawn, left = set(worst), [], budget - int(sizes[worst].sum())
    for i in order:
        if len(shown) == limit:
            break
        if i not in shown:
            if i in too_large:
                continue
            if sizes[i] > left:
                break
            shown.add(i)
            left -= int(sizes[i])
        drawn.append(i)
    return ShownImages(sorted(shown), drawn, worst=len(worst), too_large=len(too_large))


@dataclass(frozen=True)
class PageImage:
    """The image as a data URI, or the reason why there is none."""

    data_uri: str | None = None
    problem: str = ""


def load_images(paths: list[Path], total_bytes: int) -> list[PageImage]:
    """The images of the page. Their data URIs take at most about `total_bytes` together."""
    side = SIDE if len(paths) <= MANY else SIDE_OF_MANY
    max_bytes = min(MAX_IMAGE_BYTES, total_bytes * 3 // 4 // max(1, len(paths)))  # base64 adds a third
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda path: _load_image(path, side, max_bytes), paths))


def _load_image(path: Path, side: int, max_bytes: int) -> PageImage:
    if not path.is_file():
        return PageImage(problem="image file not found")
    try:
        image = load_image(path)
        while True:
            data_uri = to_data_uri(thumbnail(image, side), max_bytes)
            if len(data_uri) * 3 <= max_bytes * 4 + 100 or side <= SMALLEST_SIDE:
                return PageImage(data_uri=data_uri)
            side = side * 3 // 4
    except OSError:
        return PageImage(problem="image file cannot be read")
