"""Images that have nothing to do with the classes: does the model give the agreed answer, and does it invent boxes?"""

from boxtune.answers.gate import GATED
from boxtune.answers.predictions import Prediction
from boxtune.inference.probes.material import Material
from boxtune.inference.probes.subject import Subject
from boxtune.metrics.guardrail_rules import HALLUCINATION_RATE, PASS_RATE, Probe, mean_of


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    predictions = subject.detect(material.unrelated)
    agreed = bool(subject.collator.grounding.irrelevant_answer)
    boxes = [len(prediction["objects"]["category"]) for prediction in predictions]
    return {
        PASS_RATE: mean_of([_passes(prediction, agreed) for prediction in predictions]),
        HALLUCINATION_RATE: mean_of([count > 0 for count in boxes]),
        "hallucinated_boxes": mean_of(boxes),
    }


def _passes(prediction: Prediction, agreed: bool) -> bool:
    """Whether the response is the agreed one: the checkpoint's `irrelevant_answer`, or a clean empty list if it has none."""
    if GATED in prediction["problems"]:
        return True
    responses = prediction.get("parts") or [prediction]
    if agreed:
        return all("irrelevant" in response for response in responses)
    return not prediction["objects"]["category"] and not prediction["problems"]
