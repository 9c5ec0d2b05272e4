"""The results of guardrail probes: what each means, their file guardrails.json, and when a model may be promoted.

docs/guardrails.md describes the probes. boxtune/inference/guardrails.py measures them.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boxtune.common.errors import UserError, reading
from boxtune.common.files import write_whole

FILE_NAME = "guardrails.json"

PASS_RATE, HALLUCINATION_RATE, CAPTION_SANITY = "irrelevant_pass_rate", "hallucination_rate", "caption_sanity"
# A model is promoted only if its pass rate is at most this far below that of its base, and its hallucination rate at most this
# far above. Both are fractions: 0.10 are 10 points.
PASS_DROP, HALLUCINATION_RISE = 0.10, 0.10

# {probe: what it measures}, in the order of tables.
PROBES = {
    PASS_RATE: "share of unrelated images with the agreed answer",
    HALLUCINATION_RATE: "share of unrelated images with a box",
    "hallucinated_boxes": "boxes per unrelated image",
    "blindness_rate": "share of images whose answer is no better than without the image",
    "crop_consistency": "mean IoU of boxes before and after small crops",
    "absent_rate": "share of answers with boxes to questions about absent classes",
    "pope_accuracy": "share of right answers to yes/no questions",
    "pope_yes_rate": "share of yes among the answers to yes/no questions",
    "untrained_agreement": "F1 against the base for classes that were not trained",
    CAPTION_SANITY: "share of sane descriptions",
    "drift_kl": "KL divergence from the base per token",
    "drift_top1": "share of tokens where the base would write the same",
}
# The table of in-domain and out-of-domain image × prompt: the share of responses with boxes. The first word is the image.
DOMAINS = {
    "boxes_in_in": "boxes on own images, asked for boxes",
    "boxes_in_out": "boxes on own images, asked for a description",
    "boxes_out_in": "boxes on unrelated images, asked for boxes",
    "boxes_out_out": "boxes on unrelated images, asked for a description",
}
# Where a higher value is better, and where a lower one is. The others are neither.
HIGHER = (PASS_RATE, "crop_consistency", "pope_accuracy", "untrained_agreement", CAPTION_SANITY, "drift_top1")
LOWER = (HALLUCINATION_RATE, "hallucinated_boxes", "blindness_rate", "absent_rate", "drift_kl")


@dataclass(frozen=True)
class Probe:
    """One result. `value` is None where nothing could be measured, such as for a dataset without absent classes.

    n: number of images, questions, pairs of boxes or tokens behind the value. baseline: the value of the base, None if there is
    none.
    """

    value: float | None
    n: int
    baseline: float | None = None


Probes = Mapping[str, Probe]


def mean_of(values: Sequence[float]) -> Probe:
    """The mean of numbers or of true and false; without any, its value is None."""
    return Probe(float(sum(values) / len(values)) if values else None, len(values))


def promotion_problems(
    probes: Probes, pass_drop: float = PASS_DROP, hallucination_rise: float = HALLUCINATION_RISE
) -> list[str]:
    """Why a model may not be promoted; empty if it may. Without a baseline, the limits are 1 - pass_drop and hallucination_rise.

    A probe that is missing or has no value is a problem, too.
    """
    return [
        *_limit_problems(probes, PASS_RATE, 1.0, -pass_drop),
        *_limit_problems(probes, HALLUCINATION_RATE, 0.0, hallucination_rise),
    ]


def _limit_problems(probes: Probes, name: str, best: float, margin: float) -> Iterator[str]:
    """best: stands for the baseline where there is none. margin: what the value may differ from it; negative for less."""
    probe = probes.get(name)
    if probe is None or probe.value is None:
        yield f"{name}: not measured"
        return
    start = best if probe.baseline is None else probe.baseline
    beyond = (probe.value - start - margin) * math.copysign(1, margin)
    if beyond > 1e-9:
        source = "no base, so compared with the best value" if probe.baseline is None else "the base"
        limit = "at least" if margin < 0 else "at most"
        yield f"{name}: {probe.value:.3f} must be {limit} {start + margin:.3f} ({source}: {start:.3f})"


# ---- the file ------------------------------------------------------------------------------------------------------------


def write_guardrails(path: Path, probes: Probes) -> None:
    content = {name: dataclasses.asdict(probe) for name, probe in probes.items()}
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_guardrails(path: Path) -> dict[str, Probe]:
    """Raises UserError if the file is missing or corrupt."""
    if not path.is_file():
        raise UserError(f"{path} does not exist. To make it: evaluate.py --ckpt DIR --guardrails small")
    with reading(str(path), "Make it again: evaluate.py --ckpt DIR --guardrails small"):
        probes = {name: Probe(**entry) for name, entry in json.loads(path.read_text(encoding="utf-8")).items()}
        for name, probe in probes.items():
            numbers = (probe.value, probe.baseline)
            if type(probe.n) is not int or not all(number is None or _is_finite(number) for number in numbers):
                raise ValueError(f"{name} must hold finite numbers or null, got {dataclasses.asdict(probe)}")
    return probes


def _is_finite(number: object) -> bool:
    return type(number) in (int, float) and math.isfinite(number)  # type: ignore[arg-type]
