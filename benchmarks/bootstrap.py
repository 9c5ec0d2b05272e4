"""Intervals of F1 and mean IoU over the runs of an experiment, from the counts of every picture that results.jsonl keeps."""

import numpy as np

from boxtune.bootstrap import COUNTS, draws, f1_and_iou, interval

DRAWS = 2000


def intervals(runs: list[dict[str, list[float]]], seed: int = 0) -> dict[str, list[float]]:
    """{"f1", "mean_iou_gt": [low, high]} of the mean over runs that answered the same pictures.

    Each run holds parallel lists, one entry a picture: tp, fp, fn, `iou` (summed over its truth) and `truth` (boxes).
    """
    counts = np.array([[run[key] for key in COUNTS] for run in runs], dtype=float)  # (runs, 5, pictures)
    sums = np.stack([counts @ weights for weights in draws(counts.shape[2], DRAWS, seed)])  # (draws, runs, 5)
    return {name: interval(values.mean(axis=1)) for name, values in f1_and_iou(sums).items()}
