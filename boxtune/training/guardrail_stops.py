"""When a run stops because the model forgets or overfits: rules over the figures of its evaluations."""

from dataclasses import dataclass

from boxtune.metrics.guardrail_rules import CAPTION_SANITY, HALLUCINATION_RATE, PASS_RATE

TOLERANCE = 1e-9  # of comparisons of fractions, which are not exact in binary


@dataclass(frozen=True)
class StopLimits:
    """The limits of `stop_reasons`; all but `loss_gap_rise` are fractions, so 0.2 is 20 percentage points."""

    pass_rate_drop: float = 0.20
    pass_rate_floor: float = 0.80
    hallucination_rise: float = 0.15
    caption_drop: float = 0.10
    loss_gap_rise: float = 0.06


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation. `probes`: values of guardrail probes, empty where they were not asked. `train_loss`: mean
    of the logged training losses since the evaluation before, None if there was none."""

    step: int
    probes: dict[str, float]
    eval_loss: float
    train_loss: float | None

    @property
    def gap(self) -> float | None:
        """Evaluation loss minus training loss."""
        return None if self.train_loss is None else self.eval_loss - self.train_loss


def stop_reasons(history: list[Evaluation], baseline: dict[str, float], limits: StopLimits) -> list[str]:
    """Why the run stops after the last evaluation of `history`; empty if it goes on. Each reason names its figures.

    - The pass rate is more than `pass_rate_drop` below that of `baseline`, the model before the first step.
    - It was below `pass_rate_floor` in two evaluations in a row, and the baseline was not.
    - The hallucination rate is more than `hallucination_rise` above the baseline's.
    - The share of sane captions was more than `caption_drop` below the baseline's in two evaluations in a row.
    - Evaluation loss minus training loss is more than `loss_gap_rise` above its lowest value, and rose in both of the last two
      evaluations.

    A rule whose figures were not measured does not apply.
    """
    reasons = []
    probed = [evaluation.probes for evaluation in history if evaluation.probes]
    newest = probed[-1] if history[-1].probes else {}

    if PASS_RATE in newest and PASS_RATE in baseline:
        now, before = newest[PASS_RATE], baseline[PASS_RATE]
        if before - now > limits.pass_rate_drop + TOLERANCE:
            reasons.append(f"{PASS_RATE} fell from {before:.2f} to {now:.2f}, by more than {limits.pass_rate_drop:.2f}")
        floor, last_two = limits.pass_rate_floor, [probes[PASS_RATE] for probes in probed[-2:]]
        if before >= floor and len(last_two) == 2 and max(last_two) < floor:
            reasons.append(
                f"{PASS_RATE} was below {floor:.2f} twice in a row ({_shown(last_two)}); before training it was {before:.2f}"
            )

    if HALLUCINATION_RATE in newest and HALLUCINATION_RATE in baseline:
        now, before = newest[HALLUCINATION_RATE], baseline[HALLUCINATION_RATE]
        if now - before > limits.hallucination_rise + TOLERANCE:
            reasons.append(
                f"{HALLUCINATION_RATE} rose from {before:.2f} to {now:.2f}, by more than {limits.hallucination_rise:.2f}"
            )

    if CAPTION_SANITY in newest and CAPTION_SANITY in baseline:
        last_two = [probes[CAPTION_SANITY] for probes in probed[-2:]]
        least = baseline[CAPTION_SANITY] - limits.caption_drop - TOLERANCE
        if len(last_two) == 2 and max(last_two) < least:
            reasons.append(
                f"{CAPTION_SANITY} was more than {limits.caption_drop:.2f} below the {baseline[CAPTION_SANITY]:.2f} before "
                f"training twice in a row ({_shown(last_two)})"
            )

    gaps = [evaluation.gap for evaluation in history if evaluation.gap is not None]
    if history[-1].gap is not None and len(gaps) >= 3:
        before_last, last, now = gaps[-3:]
        if before_last < last < now and now - min(gaps) > limits.loss_gap_rise + TOLERANCE:
            reasons.append(
                f"evaluation loss minus training loss rose in two evaluations ({_shown(gaps[-3:])}) and is more than "
                f"{limits.loss_gap_rise:.2f} above its lowest value, {min(gaps):.2f}"
            )
    return reasons


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
