"""Free descriptions: are they still sane? Long enough, without repetition and without boxes, and likely under the base."""

import math

import torch

from boxtune.answers.responses import Response
from boxtune.inference.probes.material import Material, captions_of
from boxtune.inference.probes.subject import AT_ONCE, Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of

# Letters, digits and signs of the shortest description.
LEAST_CHARACTERS = 4


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    own, unrelated = captions_of(material)
    images = [*own, *unrelated]
    responses = subject.write(images, material.suite.caption_tokens)
    sane = [_is_sane(subject, *pair) for pair in zip(images, responses, strict=True)]
    judge = material.base if subject.adapted else subject
    if judge is not None:
        likely = [i for i, is_sane in enumerate(sane) if is_sane]
        found = perplexities(judge, [images[i] for i in likely], [responses[i].text for i in likely])
        for i, value in zip(likely, found, strict=True):
            sane[i] = value <= material.suite.caption_perplexity
    return {"caption_sanity": mean_of(sane)}


def _is_sane(subject: Subject, shown: Shown, response: Response) -> bool:
    """Whether a response is long enough, without repetition and without boxes. One that the limit cut off may be sane."""
    text = response.text.strip()
    if len("".join(text.split())) < LEAST_CHARACTERS or response.cut == "looped":
        return False
    return text != subject.collator.grounding.irrelevant_answer and not has_objects(subject, shown, response)


def has_objects(subject: Subject, shown: Shown, response: Response) -> bool:
    """Whether a text holds boxes or points."""
    size = (shown.record["height"], shown.record["width"])
    answer = subject.collator.codec.decode(
        response.text, size, response.input_size, (), subject.collator.encoder.prompt_opens_thought
    )
    return bool(answer.labels)


def perplexities(subject: Subject, images: list[Shown], texts: list[str]) -> list[float]:
    """Of each text as the response to a question."""
    found = []
    for start in range(0, len(images), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        for logits, tokens in subject.logits_of(images[rows], texts[rows]):
            loss = torch.nn.functional.cross_entropy(logits, tokens).item()
            found.append(math.exp(min(loss, 700.0)))
    return found
