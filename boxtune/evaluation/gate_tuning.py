"""--tune --gate: choose the gate's threshold on validation images with objects and on drawn unrelated images."""

import dataclasses
from dataclasses import dataclass

from boxtune.answers.gate import LOST, choose_gate
from boxtune.batching.collator import DetectionCollator
from boxtune.data.unrelated_images import GENERATED, unrelated_images
from boxtune.evaluation.split import Split
from boxtune.inference.detector import Detector
from boxtune.inference.gate import gate_probabilities
from boxtune.inference.probes.material import asked_like

# Unrelated images are cheap to ask about: one pass each.
UNRELATED = 40


@dataclass(frozen=True)
class Gate:
    """The threshold, and how many of the images on which it was chosen pass it. 0 is no gate."""

    threshold: float
    own: int = 0
    own_passed: int = 0
    unrelated: int = 0
    unrelated_passed: int = 0

    def summary(self) -> str:
        if not self.threshold:
            return f"gate: off, because none keeps out an unrelated image and loses at most {LOST:.0%} of the images with objects"
        return (
            f"gate: {self.threshold:g}; {self.own_passed} of {self.own} validation images with objects and "
            f"{self.unrelated_passed} of {self.unrelated} unrelated images pass"
        )


def tune_gate(detector: Detector, split: Split, batch_size: int) -> Gate:
    """The gate for a detector whose weights are here."""
    own = [record for record in split.records if not all(record["objects"]["ignore"])]
    shown = [
        asked_like(image, own[i % len(own)]) for i, image in enumerate(unrelated_images(GENERATED, UNRELATED, "gate"))
    ]
    openers = {one.id: one.open for one in shown}
    checkpoint = detector.checkpoint
    grounding = dataclasses.replace(checkpoint.grounding, classes=split.asked)
    own_collator = DetectionCollator(checkpoint.processor, grounding, split.data_dir)
    drawn = DetectionCollator(
        checkpoint.processor, grounding, split.data_dir, open_image=lambda record: openers[record["id"]]()
    )
    own_values = gate_probabilities(detector.model, own_collator, own, batch_size)
    unrelated_values = gate_probabilities(detector.model, drawn, [one.record for one in shown], batch_size)
    threshold = choose_gate(own_values, unrelated_values)
    passed = [sum(value >= threshold for value in values) for values in (own_values, unrelated_values)]
    return Gate(threshold, len(own), passed[0], len(shown), passed[1])
