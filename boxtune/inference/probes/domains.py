"""Where the model writes boxes: the user's or unrelated images × a question for boxes or for a description."""

from boxtune.inference.probes.captions import has_objects
from boxtune.inference.probes.material import Material, captions_of
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    """The share of responses with boxes. In the names, the first word is the image and the second the prompt."""
    own_captions, unrelated_captions = captions_of(material)
    limit = material.suite.caption_tokens
    return {
        "boxes_in_in": _detected(subject, material.own),
        "boxes_in_out": _described(subject, own_captions, limit),
        "boxes_out_in": _detected(subject, material.unrelated),
        "boxes_out_out": _described(subject, unrelated_captions, limit),
    }


def _detected(subject: Subject, images: list[Shown]) -> Probe:
    return mean_of([bool(prediction["objects"]["category"]) for prediction in subject.detect(images)])


def _described(subject: Subject, images: list[Shown], limit: int) -> Probe:
    responses = subject.write(images, limit)
    return mean_of([has_objects(subject, *pair) for pair in zip(images, responses, strict=True)])
