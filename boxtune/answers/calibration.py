"""Scores that say how often they are right: fitted on validation, saved with the checkpoint, and measured.

Platt's method (Platt 1999, "Probabilistic outputs for support vector machines") on the log-odds of the raw score s:
p = σ(slope · logit(s) + intercept), the slope above 0, so that the ranking, and with it AP, stays. A prior of one hit and
one miss, his own, keeps few examples from certainty.
"""

import math

import numpy as np

LEAST = 20  # objects that a fit needs
BINS = 10
_EDGE = 1e-6  # scores are kept this far from 0 and 1, whose log-odds are infinite
_STEPS = 100


def logit(scores) -> np.ndarray:
    clipped = np.clip(np.asarray(scores, dtype=np.float64), _EDGE, 1 - _EDGE)
    return np.log(clipped / (1 - clipped))


def calibrate(scores, calibration: list[float]) -> list[float]:
    """The scores as shares of hits, by [slope, intercept]."""
    slope, intercept = calibration
    return (1 / (1 + np.exp(-(slope * logit(scores) + intercept)))).tolist()


def fit(scores, hits) -> list[float]:
    """[slope, intercept] of greatest likelihood for (N,) scores and (N,) hits, by Newton's method with
    steps that are halved until they lead down.

    An empty list where it cannot be told: fewer than 20 objects, only hits or only misses, or scores that do not rise with
    the share of hits.
    """
    hits = np.asarray(hits, dtype=np.float64)
    positives, negatives = hits.sum(), (1 - hits).sum()
    if len(hits) < LEAST or not positives or not negatives:
        return []
    features = np.stack([logit(scores), np.ones(len(hits))], axis=1)  # (N, 2)
    targets = np.where(hits > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weights = np.array([0.0, math.log((positives + 1) / (negatives + 1))])

    def surprise(weights: np.ndarray) -> float:
        log_odds = features @ weights
        return float(np.logaddexp(0, log_odds).sum() - targets @ log_odds)

    for _ in range(_STEPS):
        shares = 1 / (1 + np.exp(-(features @ weights)))
        gradient = features.T @ (shares - targets)
        curvature = (features * (shares * (1 - shares))[:, None]).T @ features + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # Where most scores are 0 or 1 a whole step can lead so far off that none leads back (Lin, Lin and Weng 2007).
        while surprise(weights - step) > surprise(weights):
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights.tolist() if np.isfinite(weights).all() and weights[0] > 0 else []


def reliability(scores, hits) -> dict:
    """{"expected_calibration_error", "bins"}: ten bins of equal width, each with its number of objects, mean score and share
    of hits, the empty ones left out; the error is the mean of |score − share| over objects (Naeini et al. 2015). None and
    [] without objects."""
    scores, hits = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    numbers = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = []
    for number in np.unique(numbers):
        inside = numbers == number
        bins.append(
            {
                "from": number / BINS,
                "objects": int(inside.sum()),
                "score": float(scores[inside].mean()),
                "hits": float(hits[inside].mean()),
            }
        )
    error = sum(row["objects"] * abs(row["score"] - row["hits"]) for row in bins) / len(scores) if bins else None
    return {"expected_calibration_error": error, "bins": bins}
