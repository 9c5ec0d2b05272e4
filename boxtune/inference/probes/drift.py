"""How far the model's next words are from those of its base: on fixed texts, and on the base's own descriptions of images."""

from collections.abc import Iterator

import torch

from boxtune.inference.probes.material import Material, captions_of
from boxtune.inference.probes.subject import AT_ONCE, Subject
from boxtune.inference.probes.tokens import Scored
from boxtune.metrics.guardrail_rules import Probe

KL, TOP1 = "drift_kl", "drift_top1"

# For each token: the divergence, and whether both models find the same one most likely.
Compared = tuple[torch.Tensor, torch.Tensor]


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    """Means over all tokens: KL(base ‖ model) in nats, and the share of tokens for which both find the same one most likely.

    None if there is no base to compare with.
    """
    if not subject.adapted:
        return {KL: Probe(0.0, 0), TOP1: Probe(1.0, 0)}
    base = material.base
    if base is None:
        return {KL: Probe(None, 0), TOP1: Probe(None, 0)}
    pairs = [*_of_texts(subject, base, material), *_of_images(subject, base, material)]
    if not pairs:
        return {KL: Probe(None, 0), TOP1: Probe(None, 0)}
    kl, same = (torch.cat(column) for column in zip(*pairs, strict=True))
    return {KL: Probe(kl.mean().item(), len(kl)), TOP1: Probe(same.float().mean().item(), len(same))}


def _of_texts(subject: Subject, base: Subject, material: Material) -> Iterator[Compared]:
    for text in material.suite.drift_texts:
        yield _compared(base.logits_of_text(text), subject.logits_of_text(text))


def _of_images(subject: Subject, base: Subject, material: Material) -> Iterator[Compared]:
    """Both read what the base wrote about the user's images."""
    images, _ = captions_of(material)
    written = base.write(images, material.suite.caption_tokens)
    described = [(one, response.text) for one, response in zip(images, written, strict=True) if response.text]
    for start in range(0, len(described), AT_ONCE):
        rows = list(zip(*described[start : start + AT_ONCE], strict=True))
        yield from map(_compared, base.logits_of(*rows), subject.logits_of(*rows))


def _compared(before: Scored, after: Scored) -> Compared:
    return _divergence(before[0], after[0]), before[0].argmax(-1) == after[0].argmax(-1)


def _divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(T,) KL divergence of the distributions of two (T, vocabulary) logits."""
    log_before, log_after = before.log_softmax(-1), after.log_softmax(-1)
    return (log_before.exp() * (log_before - log_after)).sum(-1).clamp(min=0)
