"""Boxes on classes that were not trained: does the model still find what its base finds?"""

from boxtune.answers.predictions import Prediction
from boxtune.data.questions import turns_for
from boxtune.data.records import Record, with_objects
from boxtune.inference.probes.material import Material
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe
from boxtune.metrics.matching import match_images

NAME = "untrained_agreement"


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    """F1 at an IoU of 0.5 with the boxes of the base as the ground truth; None if neither has any, or if there is no base."""
    trained = {name.casefold() for name in material.classes}
    classes = [name for name in material.suite.untrained_classes if name.casefold() not in trained]
    if not subject.adapted:
        return {NAME: Probe(1.0, 0)}
    if material.base is None or not classes or subject.collator.codec.is_click:
        return {NAME: Probe(None, 0)}
    images = [_asking_for(one, classes) for one in (*material.own, *material.unrelated)]
    found, expected = (asked.detect(images, classes) for asked in (subject, material.base))
    truth = [_as_truth(one.record, prediction) for one, prediction in zip(images, expected, strict=True)]
    matches = match_images(truth, found)
    boxes = sum(2 * match.tp + match.fp + match.fn for match in matches)
    return {NAME: Probe(2 * sum(match.tp for match in matches) / boxes if boxes else None, len(images))}


def _asking_for(shown: Shown, classes: list[str]) -> Shown:
    turns = {"id": f"{shown.id}/untrained", "messages": turns_for(classes, classes[0] if len(classes) == 1 else None)}
    return Shown(with_objects(shown.record, []) | turns, shown.open)


def _as_truth(record: Record, prediction: Prediction) -> Record:
    """The record with the boxes of a prediction as its objects."""
    columns = prediction["objects"]
    objects = {"bbox": columns["bbox"], "category": columns["category"], "ignore": [False] * len(columns["bbox"])}
    return record | {"objects": objects}
