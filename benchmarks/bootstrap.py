"""Bootstrap intervals of F1 and mean IoU over the runs of an experiment, and of the differences between two experiments. They are
computed from the per-image counts in results.jsonl.

A draw resamples images with replacement, and runs with replacement, because another training run would have given another
result (Owen 2007, "The pigeonhole bootstrap"). Three runs give only a rough estimate of that variation.
"""

from collections.abc import Sequence

import numpy as np

from boxtune.metrics.bootstrap import COUNTS, draws, f1_and_iou, interval

DRAWS = 2000

# The values whose differences are reported, and the names of the counts at IoU 0.75.
VALUES = ("f1", "f1_75", "mean_iou_gt")
STRICT = {"tp": "tp75", "fp": "fp75", "fn": "fn75"}


def intervals(runs: list[dict[str, list[float]]], seed: int = 0) -> dict[str, list[float]]:
    """{"f1", "mean_iou_gt": [low, high]}: 95 % intervals of the mean over runs (seeds) on the same images.

    Each run holds parallel lists with one entry per image: tp, fp, fn, `iou` (summed over its ground truth) and `truth` (the
    number of ground-truth boxes).
    """
    return {name: interval(values) for name, values in _drawn(runs, COUNTS, seed).items()}


def values_of(run: dict[str, list[float]]) -> dict[str, float]:
    """{"f1", "f1_75", "mean_iou_gt"} of one run, which must also hold tp75, fp75 and fn75."""
    loose = f1_and_iou(np.array([sum(run[key]) for key in COUNTS], dtype=float))
    strict = f1_and_iou(np.array([sum(run[STRICT.get(key, key)]) for key in COUNTS], dtype=float))
    return {"f1": float(loose["f1"]), "f1_75": float(strict["f1"]), "mean_iou_gt": float(loose["mean_iou_gt"])}


def differences(
    before: list[dict[str, list[float]]], after: list[dict[str, list[float]]], seed: int = 0
) -> dict[str, list[float]]:
    """{"f1", "f1_75", "mean_iou_gt": [low, high]}: 95 % intervals of the mean of after[i] − before[i].

    Both lists have the same length. Draws are paired by image and by run.
    """
    drawn = []
    for runs in (before, after):
        loose, strict = _drawn(runs, COUNTS, seed), _drawn(runs, [STRICT.get(key, key) for key in COUNTS], seed)
        drawn.append(loose | {"f1_75": strict["f1"]})
    return {name: interval(drawn[1][name] - drawn[0][name]) for name in VALUES}


def _drawn(runs: list[dict[str, list[float]]], keys: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """{"f1", "mean_iou_gt": (draws,)}: means over the drawn runs. The same seed gives the same draws."""
    counts = np.array([[run[key] for key in keys] for run in runs], dtype=float)  # (runs, 5, images)
    sums = np.stack([counts @ weights for weights in draws(counts.shape[2], DRAWS, seed)])  # (draws, runs, 5)
    # A separate random stream for runs, so that their draws are independent of those of the images.
    times = np.random.default_rng([seed, len(runs)]).multinomial(len(runs), [1 / len(runs)] * len(runs), DRAWS)
    return {name: (values * times).sum(axis=1) / len(runs) for name, values in f1_and_iou(sums).items()}
