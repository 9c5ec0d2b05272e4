"""How far the model's next words are from those of its base: on fixed texts, and on the base's own descriptions of images."""

import torch

from boxtune.inference.probes.material import Material, captions_of
from boxtune.inference.probes.subject import Subject
from boxtune.metrics.guardrail_rules import Probe

KL, TOP1 = "drift_kl", "drift_top1"


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    """Means over all tokens: KL(base ‖ model) in nats, and the share of tokens for which both find the same one most likely.

    None if there is no base to compare with.
    """
    if not subject.adapted:
        return {KL: Probe(0.0, 0), TOP1: Probe(1.0, 0)}
    base = material.base
    if base is None:
        return {KL: Probe(None, 0), TOP1: Probe(None, 0)}
    divergences, same = [], []
    texts = [(asked.logits_of_text(text) for asked in (base, subject)) for text in material.suite.drift_texts]
    images = captions_of(material)[0]
    written = base.write(images, material.suite.caption_tokens)
    described = [
        (asked.logits_of_response(one, response.text) for asked in (base, subject))
        for one, response in zip(images, written, strict=True)
        if response.text
    ]
    for pair in (*texts, *described):
        (before, _), (after, _) = pair
        divergences.append(_divergence(before, after))
        same.append(before.argmax(-1) == after.argmax(-1))
    if not divergences:
        return {KL: Probe(None, 0), TOP1: Probe(None, 0)}
    kl, equal = torch.cat(divergences), torch.cat(same)
    return {KL: Probe(kl.mean().item(), len(kl)), TOP1: Probe(equal.float().mean().item(), len(equal))}


def _divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(T,) KL divergence of the distributions of two (T, vocabulary) logits."""
    log_before, log_after = before.log_softmax(-1), after.log_softmax(-1)
    return (log_before.exp() * (log_before - log_after)).sum(-1).clamp(min=0)
