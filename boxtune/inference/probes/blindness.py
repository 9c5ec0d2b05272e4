"""Does the answer depend on the image? The question of each image is asked again about a blank and about another image.

An image counts as blind if its own response finds the objects no better than those responses do. Empty responses, and responses
that are always the same, find nothing more with the image than without it.
"""

from PIL import Image

from boxtune.answers.predictions import Prediction
from boxtune.data.records import Record
from boxtune.inference.probes.material import Material, with_image
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of
from boxtune.metrics.matching import match_images

# How much better, in mean IoU over the objects, the own response must be.
MARGIN = 0.1
# Images with objects in the same places cannot be swapped: mean IoU between their objects.
ALIKE = 0.5
GRAY = (128, 128, 128)


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    own = material.own
    swapped = [_swapped(one, own) for one in own]
    found = subject.detect(own)
    without = subject.detect([_blank(one) for one in own])
    others = iter(subject.detect([one for one in swapped if one]))
    blind = []
    for one, prediction, blank, swap in zip(own, found, without, swapped, strict=True):
        rivals = [blank] if swap is None else [blank, next(others)]
        best = max(_quality(one.record, rival) for rival in rivals)
        blind.append(_quality(one.record, prediction) < best + MARGIN)
    return {"blindness_rate": mean_of(blind)}


def _blank(shown: Shown) -> Shown:
    size = (shown.record["width"], shown.record["height"])
    return with_image(shown, lambda: Image.new("RGB", size, GRAY), size, "blank")


def _swapped(shown: Shown, images: list[Shown]) -> Shown | None:
    """The question about the image, among `images`, whose objects are least in the same places; None if all are alike."""
    others = [other for other in images if other.id != shown.id]
    alike = [_quality(shown.record, other.record) for other in others]
    if not alike or min(alike) > ALIKE:
        return None
    size = (shown.record["width"], shown.record["height"])
    other = others[alike.index(min(alike))]
    return with_image(shown, lambda: other.open().resize(size), size, "swapped")


def _quality(record: Record, prediction: Prediction | Record) -> float:
    """How well the objects of a prediction, or of another record, match the record's: the mean IoU, whatever the class.

    For points, the share of objects with a point in them.
    """
    truth = record | {"objects": record["objects"] | {"category": ["" for _ in record["objects"]["category"]]}}
    objects = prediction["objects"]
    scores = [1.0 for _ in objects["category"]]
    found = prediction | {"objects": objects | {"category": ["" for _ in scores], "score": scores}}
    [match] = match_images([truth], [found])
    return match.tp / (match.tp + match.fn) if match.mean_iou is None else match.mean_iou
