"""Intervals of F1 and mean IoU over the runs of an experiment, and of how two experiments differ, from the counts of every
picture that results.jsonl keeps.

A draw takes pictures with replacement, and runs with replacement, because another training would have come out otherwise too
(Owen 2007, "The pigeonhole bootstrap"). Three runs say little of how much so.
"""

from collections.abc import Sequence

import numpy as np

from boxtune.metrics.bootstrap import COUNTS, draws, f1_and_iou, interval

DRAWS = 2000


# What differences are told of, and where the counts of F1 at IoU 0.75 stand.
VALUES = ("f1", "f1_75", "mean_iou_gt")
STRICT = {"tp": "tp75", "fp": "fp75", "fn": "fn75"}


def intervals(runs: list[dict[str, list[float]]], seed: int = 0) -> dict[str, list[float]]:
    """{"f1", "mean_iou_gt": [low, high]} of the mean over runs (seeds) that answered the same pictures.

    Each run holds parallel lists, one entry a picture: tp, fp, fn, `iou` (summed over its truth) and `truth` (boxes).
    """
    return {name: interval(values) for name, values in _drawn(runs, COUNTS, seed).items()}


def values_of(run: dict[str, list[float]]) -> dict[str, float]:
    """{"f1", "f1_75", "mean_iou_gt"} of one run, which holds tp75, fp75 and fn75 besides."""
    loose = f1_and_iou(np.array([sum(run[key]) for key in COUNTS], dtype=float))
    strict = f1_and_iou(np.array([sum(run[STRICT.get(key, key)]) for key in COUNTS], dtype=float))
    return {"f1": float(loose["f1"]), "f1_75": float(strict["f1"]), "mean_iou_gt": float(loose["mean_iou_gt"])}


def differences(
    before: list[dict[str, list[float]]], after: list[dict[str, list[float]]], seed: int = 0
) -> dict[str, list[float]]:
    """{"f1", "f1_75", "mean_iou_gt": [low, high]} of the mean of after[i] − before[i]: paired by pictures and by runs, as many
    before as after."""
    drawn = []
    for runs in (before, after):
        loose, strict = _drawn(runs, COUNTS, seed), _drawn(runs, [STRICT.get(key, key) for key in COUNTS], seed)
        drawn.append(loose | {"f1_75": strict["f1"]})
    return {name: interval(drawn[1][name] - drawn[0][name]) for name in VALUES}


def _drawn(runs: list[dict[str, list[float]]], keys: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """{"f1", "mean_iou_gt": (draws,)} means over the runs that were drawn; the same seed draws the same."""
    counts = np.array([[run[key] for key in keys] for run in runs], dtype=float)  # (runs, 5, pictures)
    sums = np.stack([counts @ weights for weights in draws(counts.shape[2], DRAWS, seed)])  # (draws, runs, 5)
    # The runs' draws are a stream of their own, or they would go with the pictures'.
    times = np.random.default_rng([seed, len(runs)]).multinomial(len(runs), [1 / len(runs)] * len(runs), DRAWS)
    return {name: (values * times).sum(axis=1) / len(runs) for name, values in f1_and_iou(sums).items()}
