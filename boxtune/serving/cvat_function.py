"""A checkpoint as a function for CVAT's automatic annotation. CVAT's command-line client runs it on this machine:

    cvat-cli task auto-annotate TASK --function-file boxtune/serving/cvat_function.py -p ckpt=str:DIR

Further parameters: -p server=str:URL (an OpenAI-compatible server runs the model), -p classes=str:a,b (other classes than the
trained ones), -p precision=str:float32. docs/annotation_tools.md has the steps.
"""

import sys
from collections import Counter

import cvat_sdk.auto_annotation as cvataa
from PIL import Image

from boxtune import Detections, Detector
from boxtune.common.errors import UserError


class CheckpointFunction:
    """CVAT's protocol of a detection function: `spec` names the labels, `detect` finds them in one image."""

    def __init__(self, detector: Detector, classes: list[str]):
        self._detector, self._classes = detector, classes
        self._is_click = detector.checkpoint.grounding.get_codec().is_click
        self._ids = {name: number for number, name in enumerate(classes)}
        kind = "points" if self._is_click else "rectangle"
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(name, number, type=kind) for name, number in self._ids.items()]
        )

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[cvataa.DetectionAnnotation]:
        found = self._detector(image, classes=self._classes, threshold=context.conf_threshold)
        self._report(context.frame_name, found)
        places = found.points_xy if self._is_click else found.boxes_xyxy
        kind = "points" if self._is_click else "rectangle"
        return [
            cvataa.shape(self._ids[label], type=kind, points=place, score=score)
            for label, place, score in zip(found.labels, places.tolist(), found.scores.tolist(), strict=True)
            if label in self._ids
        ]

    def _report(self, name: str, found: Detections) -> None:
        """Nothing is left out in silence: labels that the function did not announce, and problems of the response."""
        unknown = Counter(label for label in found.labels if label not in self._ids)
        notes = [f"{count} × {label!r:.60} left out: not one of the classes" for label, count in unknown.items()]
        for note in [*notes, *dict.fromkeys(found.problems)]:
            print(f"{name}: {note}", file=sys.stderr)


def create(ckpt: str, server: str = "", classes: str = "", precision: str = "") -> CheckpointFunction:
    """What cvat-cli calls with the parameters of -p."""
    detector = Detector.from_pretrained(ckpt, server=server or None, precision=precision or None)
    wanted = [name.strip() for name in classes.split(",") if name.strip()] or detector.classes
    if not wanted:
        raise UserError(f"{ckpt} does not name the classes that it was trained on; give them as -p classes=str:a,b.")
    return CheckpointFunction(detector, wanted)
