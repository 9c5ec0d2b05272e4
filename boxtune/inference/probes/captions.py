"""Free descriptions: are they still sane? Long enough, without repetition and without boxes, and likely under the base."""

import math

import torch

from boxtune.answers.responses import Response
from boxtune.inference.probes.material import Material, captions_of
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of

# Letters, digits and signs of the shortest description.
LEAST_CHARACTERS = 4


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    own, unrelated = captions_of(material)
    images = [*own, *unrelated]
    responses = subject.write(images, material.suite.caption_tokens)
    sane = [_is_sane(subject, material, *pair) for pair in zip(images, responses, strict=True)]
    return {"caption_sanity": mean_of(sane)}


def _is_sane(subject: Subject, material: Material, shown: Shown, response: Response) -> bool:
    """A response that the limit of tokens cut off may be sane."""
    text = response.text.strip()
    if len("".join(text.split())) < LEAST_CHARACTERS or response.cut == "looped":
        return False
    if text == subject.collator.grounding.irrelevant_answer or has_objects(subject, shown, response):
        return False
    judge = material.base if subject.adapted else subject
    return judge is None or perplexity(judge, shown, response.text) <= material.suite.caption_perplexity


def has_objects(subject: Subject, shown: Shown, response: Response) -> bool:
    """Whether a text holds boxes or points."""
    size = (shown.record["height"], shown.record["width"])
    answer = subject.collator.codec.decode(
        response.text, size, response.input_size, (), subject.collator.encoder.prompt_opens_thought
    )
    return bool(answer.labels)


def perplexity(subject: Subject, shown: Shown, text: str) -> float:
    """Of a text as the response to a question."""
    logits, tokens = subject.logits_of_response(shown, text)
    loss = torch.nn.functional.cross_entropy(logits, tokens).item()
    return math.exp(min(loss, 700.0))
