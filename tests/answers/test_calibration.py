"""Calibration: fitted scores equal the share of hits."""

import numpy as np
import pytest

from boxtune.answers.calibration import calibrate, fit, logit, reliability


def drawn(slope: float, intercept: float, count: int = 20_000):
    """(scores, hits), drawn with shares of hits that follow the given calibration."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.02, 0.98, count)
    return scores, rng.random(count) < 1 / (1 + np.exp(-(slope * logit(scores) + intercept)))


def test_the_fit_finds_the_shares_that_hits_were_drawn_with():
    scores, hits = drawn(0.5, -1.0)
    # 20,000 draws: the standard errors are 0.012 and 0.018.
    assert fit(scores, hits) == pytest.approx([0.5, -1.0], abs=0.06)
    before = reliability(scores, hits)["expected_calibration_error"]
    after = reliability(calibrate(scores, fit(scores, hits)), hits)["expected_calibration_error"]
    assert before > 0.15 and after < 0.02


def test_calibration_keeps_the_ranking_even_at_scores_of_0_and_1():
    scores = [0.0, 1e-9, 2e-9, 0.2, 0.5, 0.5, 0.999, 1.0]
    found = calibrate(scores, [2.0, 1.0])
    assert found == sorted(found) and found[4] == found[5] and found[1] < found[2]
    assert all(0 < value < 1 for value in found)


def test_too_little_data_is_not_fitted():
    scores, hits = drawn(1, 0, 20)
    assert fit(scores[:-1], hits[:-1]) == [] and len(fit(scores, hits)) == 2
    assert fit(scores, np.ones(20)) == [] and fit(scores, np.zeros(20)) == []
    assert fit(*[np.array(values) for values in (scores, scores < 0.5)]) == [], (
        "scores that decrease with the share of hits"
    )


def test_perfectly_separated_hits_stay_finite():
    scores = np.linspace(0, 1, 100)
    slope, intercept = fit(scores, scores > 0.5)
    assert 0 < slope < 1e4 and np.isfinite(intercept)


@pytest.mark.parametrize("certain, doubtful", [(20, 2), (180, 10)])
def test_certain_hits_and_a_few_misses_are_fitted(certain, doubtful):
    """Full Newton steps diverge here: they end at a slope in the millions, or at none."""
    scores = np.concatenate([np.linspace(0.05, 0.95, doubtful), np.ones(certain)])
    hits = scores == 1
    found = np.array(calibrate(scores, fit(scores, hits)))
    # At the maximum of the likelihood, the shares have the same sum as the targets.
    expected_sum = certain * (certain + 1) / (certain + 2) + doubtful / (doubtful + 2)
    assert found.sum() == pytest.approx(expected_sum, abs=1e-6)
    assert found[hits] == pytest.approx(found[-1]) and found[-1] > 0.9 and found[0] < 0.5


def test_the_error_is_the_mean_difference_between_score_and_share():
    found = reliability([0.05, 0.15, 0.15, 1.0], [0, 1, 0, 1])
    assert [row["objects"] for row in found["bins"]] == [1, 2, 1]
    assert found["bins"][1] == {"from": 0.1, "objects": 2, "score": pytest.approx(0.15), "hits": 0.5}
    assert found["expected_calibration_error"] == pytest.approx((0.05 + 2 * 0.35 + 0) / 4)
    assert reliability([], []) == {"expected_calibration_error": None, "bins": []}
