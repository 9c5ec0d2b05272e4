"""Intervals of F1 and mean IoU by drawing pictures with replacement (Efron, percentile interval)."""

import numpy as np

DRAWS = 2000


def intervals(runs: list[dict[str, list[float]]], seed: int = 0, level: float = 0.95) -> dict[str, list[float]]:
    """{"f1", "mean_iou_gt": [low, high]} of the mean over runs that answered the same pictures.

    Each run holds parallel lists, one entry a picture: tp, fp, fn, `iou` (summed over its truth) and `truth` (boxes).
    """
    counts = np.array([[run[key] for key in ("tp", "fp", "fn", "iou", "truth")] for run in runs], dtype=float)
    pictures = counts.shape[2]
    drawn = np.random.default_rng(seed).integers(0, pictures, (DRAWS, pictures))
    tp, fp, fn, iou, truth = counts[:, :, drawn].sum(axis=3).transpose(1, 0, 2)  # (runs, draws) each
    values = {
        "f1": 2 * tp / np.maximum(2 * tp + fp + fn, 1),
        "mean_iou_gt": iou / np.maximum(truth, 1),
    }
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: np.quantile(value.mean(axis=0), tails).tolist() for name, value in values.items()}
