"""Each rule that stops a run stops at its limit, and not before."""

import pytest

from boxtune.training.guardrail_stops import Evaluation, StopLimits, stop_reasons

LIMITS = StopLimits()
BASELINE = {"irrelevant_pass_rate": 0.90, "hallucination_rate": 0.10, "caption_sanity": 0.95}


def history(*probes: dict[str, float]) -> list[Evaluation]:
    return [Evaluation(10 * step, values, 1.0, 1.0) for step, values in enumerate(probes, 1)]


def passes(*rates: float) -> list[Evaluation]:
    return history(*({"irrelevant_pass_rate": rate} for rate in rates))


def losses(*pairs: tuple[float, float | None]) -> list[Evaluation]:
    return [Evaluation(10 * step, {}, eval_loss, train_loss) for step, (eval_loss, train_loss) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("evaluations", "expected"),
    [
        (passes(0.90), ""),
        (passes(0.70), ""),  # exactly 20 points
        (passes(0.69), "irrelevant_pass_rate fell from 0.90 to 0.69, by more than 0.20"),
        (passes(0.79, 0.80), ""),
        (passes(0.79, 0.85, 0.79), ""),  # not in a row
        (passes(0.79, 0.75), "below 0.80 twice in a row (0.79, 0.75)"),
        (history({"hallucination_rate": 0.25}), ""),
        (history({"hallucination_rate": 0.26}), "hallucination_rate rose from 0.10 to 0.26"),
        (history({"caption_sanity": 0.80}), ""),
        (history({"caption_sanity": 0.80}, {"caption_sanity": 0.90}), ""),
        (history({"caption_sanity": 0.80}, {"caption_sanity": 0.84}), "caption_sanity was more than 0.10 below"),
        (losses((1.0, 1.0), (1.05, 1.0), (1.06, 1.0)), ""),
        (losses((1.0, 1.0), (1.05, 1.0), (1.07, 1.0)), "evaluation loss minus training loss rose"),
        (losses((1.0, 1.0), (1.08, 1.0), (1.07, 1.0)), ""),  # narrowing
        (losses((1.0, 1.0), (1.07, 1.0)), ""),  # widened only once
        (losses((1.0, None), (1.05, None), (1.2, None)), ""),
        (losses((0.9, 0.9), (1.02, 1.0), (1.04, 1.0), (1.065, 1.0)), "is more than 0.06 above its lowest value, 0.00"),
    ],
)
def test_stop_rules(evaluations, expected):
    reasons = stop_reasons(evaluations, BASELINE, LIMITS)
    if expected:
        [reason] = reasons
        assert expected in reason
    else:
        assert reasons == []


def test_a_baseline_below_the_floor_is_not_held_to_it():
    baseline = {"irrelevant_pass_rate": 0.6}
    assert stop_reasons(passes(0.55, 0.5), baseline, LIMITS) == []
    assert len(stop_reasons(passes(0.55, 0.39), baseline, LIMITS)) == 1


def test_probes_that_were_not_asked_at_the_last_evaluation_do_not_stop_again():
    evaluations = [*passes(0.1), Evaluation(20, {}, 1.0, 1.0)]
    assert stop_reasons(evaluations, BASELINE, LIMITS) == []


def test_limits_are_settings():
    assert stop_reasons(passes(0.85), BASELINE, StopLimits(pass_rate_drop=0.01)) != []
    assert stop_reasons(losses((1, 1), (2, 1), (3, 1)), {}, StopLimits(loss_gap_rise=5)) == []


def test_several_reasons_are_all_named():
    evaluations = history({"irrelevant_pass_rate": 0.1, "hallucination_rate": 0.9})
    assert len(stop_reasons(evaluations, BASELINE, LIMITS)) == 2
