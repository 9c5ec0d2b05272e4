"""Intervals by drawing images with replacement (Efron 1979, "Bootstrap methods"; percentile interval).

A draw is a weight for each image: how often it was drawn. The same seed draws the same images, so that two runs on one split
can be compared draw by draw (paired).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from boxtune.metrics.average_precision import Matches
from boxtune.metrics.matching import ImageMatch

DRAWS = 300
COUNTS = ("tp", "fp", "fn", "iou", "truth")


def draws(images: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` times (images,) whole numbers that sum to `images`."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(generator.integers(0, images, images), minlength=images)


def image_counts(images: list[ImageMatch]) -> np.ndarray:
    """(images, 5) what COUNTS name; `iou` is summed over the image's truth."""
    return np.array(
        [(image.tp, image.fp, image.fn, sum(image.ious), len(image.ious)) for image in images], dtype=np.float64
    ).reshape(-1, len(COUNTS))


def f1_and_iou(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{"f1", "mean_iou_gt"} of (…, 5) sums of COUNTS, each of shape (…); NaN where undefined."""
    tp, fp, fn, iou, truth = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore"):
        return {"f1": 2 * tp / (2 * tp + fp + fn), "mean_iou_gt": iou / truth}


def bootstrap(
    matches: Matches | None, images: list[ImageMatch], seed: int, count: int = DRAWS
) -> dict[str, np.ndarray]:
    """{"AP", "AP50", "f1", "mean_iou_gt", "fp", "fn"}: (count,) values, one a draw; NaN where undefined.

    `matches` and `images` are of the same split in the same order. Points have no matches, and so no AP.
    """
    drawn = list(draws(len(images), count, seed)) if images else []
    sums = np.array(drawn, dtype=np.float64).reshape(len(drawn), len(images)) @ image_counts(images)

    def precision(weights: np.ndarray) -> tuple[float | None, float | None]:
        coco = matches.coco(weights)
        return coco.ap(), coco.ap(0)

    with ThreadPoolExecutor() as pool:  # numpy lets go of the interpreter while it works
        values = list(pool.map(precision, drawn)) if matches else [(None, None)] * len(drawn)
    ap, ap50 = np.array(values, dtype=np.float64).reshape(-1, 2).T
    return {"AP": ap, "AP50": ap50, **f1_and_iou(sums), "fp": sums[:, 1], "fn": sums[:, 2]}


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """[low, high] of the draws in which the value is defined; None where it never is."""
    defined = values[~np.isnan(values)]
    return np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist() if defined.size else None
