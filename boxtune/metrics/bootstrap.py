"""Confidence intervals from drawing images with replacement (Efron 1979, "Bootstrap methods"; percentile intervals).

A draw is a weight for each image: how often the image was drawn. The same seed draws the same images, so two runs on one split
can be compared draw by draw.
"""

from collections.abc import Iterator

import numpy as np

from boxtune.metrics.matching import ImageMatch
from boxtune.metrics.precision_recall import RankedMatches

DRAWS = 300
# The columns of `image_counts`.
COUNTS = ("tp", "fp", "fn", "iou", "truth")


def draws(images: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` draws; each is an array (images,) of whole numbers whose sum is `images`."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(generator.integers(0, images, images), minlength=images)


def image_counts(images: list[ImageMatch]) -> np.ndarray:
    """(images, 5) the COUNTS of each image; `iou` is the sum of its IoUs, `truth` the number of its ground truth boxes."""
    rows = [(image.tp, image.fp, image.fn, sum(image.ious), len(image.ious)) for image in images]
    return np.array(rows, dtype=np.float64).reshape(-1, len(COUNTS))


def f1_and_iou(sums: np.ndarray) -> dict[str, np.ndarray]:
    """{"f1", "mean_iou_gt"} of (…, 5) sums of COUNTS, each with shape (…); NaN where undefined."""
    tp, fp, fn, iou, gt_boxes = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore"):
        return {"f1": 2 * tp / (2 * tp + fp + fn), "mean_iou_gt": iou / gt_boxes}


def bootstrap(
    matches: RankedMatches | None, images: list[ImageMatch], seed: int, count: int = DRAWS
) -> dict[str, np.ndarray]:
    """{"AP", "AP50", "f1", "mean_iou_gt", "fp", "fn"}: (count,) values, one per draw; NaN where undefined.

    `matches` and `images` describe the same split in the same order. Points have no `matches`, so their AP is undefined.
    """
    drawn = np.array([*draws(len(images), count, seed)]) if images else np.zeros((0, 0), dtype=np.int64)
    sums = drawn.astype(np.float64) @ image_counts(images)  # (draws, 5)
    ap, ap50 = _average_precisions(matches, drawn).T
    return {
        "AP": ap,
        "AP50": ap50,
        **f1_and_iou(sums),
        "fp": sums[:, COUNTS.index("fp")],
        "fn": sums[:, COUNTS.index("fn")],
    }


def _average_precisions(matches: RankedMatches | None, drawn: np.ndarray) -> np.ndarray:
    """(draws, 2) AP and AP50 of each of (draws, images); NaN where undefined."""
    if matches is None:
        return np.full((len(drawn), 2), np.nan)
    size = matches.draws_at_once(drawn)
    parts = [matches.average_precisions(drawn[start : start + size]) for start in range(0, len(drawn), size)]
    return np.concatenate([np.zeros((0, 2)), *parts])


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """[low, high] of the values that are defined; None if there are none."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return None
    bounds: list[float] = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return bounds
