"""Calibrated scores: a score of 0.8 should be right 80 % of the time. Fitted on validation and saved with the checkpoint.

Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines") on the log-odds of the raw score s:
p = σ(slope · logit(s) + intercept). The slope is positive, so the ranking and with it AP do not change.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_OBJECTS = 20  # needed for a fit
BINS = 10
# Scores are kept this far from 0 and 1, whose log-odds are infinite. Six significant digits tell apart smaller scores near 0.
_LEAST, _MOST = 1e-12, 1 - 1e-6
_MAX_STEPS = 100


def logit(scores: ArrayLike) -> Floats:
    clipped: Floats = np.clip(np.asarray(scores, dtype=np.float64), _LEAST, _MOST)
    return np.log(clipped / (1 - clipped))


def sigmoid(log_odds: ArrayLike) -> Floats:
    shares: Floats = 1 / (1 + np.exp(-np.asarray(log_odds, dtype=np.float64)))
    return shares


def calibrate(scores: ArrayLike, calibration: Sequence[float]) -> list[float]:
    """The scores as expected shares of hits. `calibration` is [slope, intercept]."""
    slope, intercept = calibration
    return [float(share) for share in sigmoid(slope * logit(scores) + intercept)]


def fit(scores: ArrayLike, hits: ArrayLike) -> list[float]:
    """[slope, intercept] of maximum likelihood for (N,) scores and (N,) hits.

    An empty list if there is no such fit: fewer than MIN_OBJECTS objects, only hits, only misses, or scores that do not
    increase with the share of hits.
    """
    hits = np.asarray(hits, dtype=np.float64)
    positives, negatives = hits.sum(), (1 - hits).sum()
    if len(hits) < MIN_OBJECTS or not positives or not negatives:
        return []
    features = np.stack([logit(scores), np.ones(len(hits))], axis=1)  # (N, 2)
    # Platt's prior of one more hit and one more miss keeps the fit from certainty where examples are few.
    targets = np.where(hits > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    start = np.array([0.0, math.log((positives + 1) / (negatives + 1))])
    slope, intercept = _minimize(features, targets, start).tolist()
    is_usable = np.isfinite([slope, intercept]).all() and slope > 0
    return [slope, intercept] if is_usable else []


def _minimize(features: Floats, targets: Floats, weights: Floats) -> Floats:
    """The (2,) weights of the smallest cross-entropy, by Newton's method with step halving."""

    def cross_entropy(weights: Floats) -> float:
        log_odds = features @ weights
        return float(np.logaddexp(0, log_odds).sum() - targets @ log_odds)

    for _ in range(_MAX_STEPS):
        shares = sigmoid(features @ weights)
        gradient = features.T @ (shares - targets)
        curvature = (features * (shares * (1 - shares))[:, None]).T @ features + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # If most scores are close to 0 or 1, a full step can diverge (Lin, Lin and Weng 2007).
        while cross_entropy(weights - step) > cross_entropy(weights):
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def reliability(scores: ArrayLike, hits: ArrayLike) -> dict[str, object]:
    """How well scores agree with the share of hits: {"expected_calibration_error", "bins"}.

    The bins have equal width; each that holds objects gives "from" (its lower edge), "objects" (their number), "score" (mean)
    and "hits" (share). The error is the mean of |score − share of hits| over objects (Naeini et al. 2015), None without any.
    """
    scores, hits = np.asarray(scores, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    numbers = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = []
    error = 0.0
    for number in np.unique(numbers):
        inside = numbers == number
        objects, score, share = int(inside.sum()), float(scores[inside].mean()), float(hits[inside].mean())
        bins.append({"from": number / BINS, "objects": objects, "score": score, "hits": share})
        error += objects * abs(score - share)
    return {"expected_calibration_error": error / len(scores) if bins else None, "bins": bins}
