"""The guardrail suite: what a model does beyond its task, compared with its base. docs/guardrails.md describes the probes."""

import dataclasses
from collections.abc import Mapping

from peft import PeftModel
from transformers import PreTrainedModel

from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import UserError
from boxtune.data.records import Record
from boxtune.inference.guardrail_suite import PROBE_NAMES, Suite
from boxtune.inference.probes import absent, blindness, captions, crops, domains, drift, unrelated, untrained, yes_no
from boxtune.inference.probes.material import make_material
from boxtune.inference.probes.subject import Answers, Subject, has_base
from boxtune.metrics.guardrail_rules import Probe

# By the names in PROBE_NAMES: functions from (subject, material) to {name in guardrail_rules.PROBES or DOMAINS: Probe}.
MEASURES = dict(
    zip(
        PROBE_NAMES,
        (
            unrelated.measure,
            blindness.measure,
            crops.measure,
            absent.measure,
            yes_no.measure,
            untrained.measure,
            captions.measure,
            drift.measure,
            domains.measure,
        ),
        strict=True,
    )
)


def run_guardrails(
    model: PreTrainedModel | PeftModel,
    collator: DetectionCollator,
    suite: Suite,
    records: list[Record],
    batch_size: int,
    baseline: Mapping[str, Probe] | None = None,
    base_answers: Answers | None = None,
    answers: Answers | None = None,
) -> dict[str, Probe]:
    """{name in guardrail_rules.PROBES or DOMAINS: its result} of the model as it is, which must be in eval mode.

    records: the user's own, whose images the collator reads; the suite chooses some of them.
    baseline: an earlier result, such as that of `run_base_guardrails`, or of this function before training. Its values become
        the baselines.
    base_answers: empty at the first call; keeps what the base answered, so that later calls in the same training, with the same
        suite and records, need not ask it again.
    answers: filled with all answers of the model, for files and reports.
    Drift, untrained classes and the perplexity of captions compare with the model whose adapter is turned off; without an
    adapter, or with trained biases, the first two are None. Raises UserError if the suite's images cannot be used.
    """
    base = Subject(model, collator, batch_size, adapted=False, answers=base_answers) if has_base(model) else None
    subject = Subject(model, collator, batch_size, answers=answers)
    found = _measure(subject, base, collator, suite, records)
    before = baseline or {}
    return {
        name: dataclasses.replace(probe, baseline=before[name].value if name in before else None)
        for name, probe in found.items()
    }


def run_base_guardrails(
    model: PeftModel,
    collator: DetectionCollator,
    suite: Suite,
    records: list[Record],
    batch_size: int,
    base_answers: Answers | None = None,
) -> dict[str, Probe]:
    """The results of the model with its adapter turned off. collator: that of the adapter, whose prompts the base is asked."""
    base = Subject(model, collator, batch_size, adapted=False, answers=base_answers)
    return _measure(base, None, collator, suite, records)


def _measure(
    subject: Subject, base: Subject | None, collator: DetectionCollator, suite: Suite, records: list[Record]
) -> dict[str, Probe]:
    material = make_material(suite, collator, records, base)
    if not material.records:
        raise UserError("the guardrails need records that ask for boxes, and this dataset has none.")
    found: dict[str, Probe] = {}
    for name in PROBE_NAMES:
        if name in suite.probes:
            found |= MEASURES[name](subject, material)
    return found
