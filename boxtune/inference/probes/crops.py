"""Do the boxes stay where they are when a little of the image is cut off?"""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image

from boxtune.answers.predictions import Prediction
from boxtune.data.boxes import box_area, box_iou, match_greedy
from boxtune.inference.probes.material import Material, with_image
from boxtune.inference.probes.subject import Shown, Subject
from boxtune.metrics.guardrail_rules import Probe, mean_of
from boxtune.metrics.matching import same_label

# A box that the crop cuts counts only if this share of it is left.
LEAST_LEFT = 0.5

Crop = tuple[int, int, int, int]  # xyxy in pixels of the image


def measure(subject: Subject, material: Material) -> dict[str, Probe]:
    if subject.collator.codec.is_click:
        return {"crop_consistency": Probe(None, 0)}
    pairs = [(one, _crop(one, size)) for size in material.suite.crop_sizes for one in material.own]
    found = subject.detect([one for one, _ in pairs])
    again = subject.detect([_cropped(one, crop) for one, crop in pairs])
    agreed = [
        agreement
        for (_, crop), whole, part in zip(pairs, found, again, strict=True)
        if (agreement := _agreement(whole, part, crop)) is not None
    ]
    return {"crop_consistency": mean_of(agreed)}


def _crop(shown: Shown, size: float) -> Crop:
    """Cuts the share `size` off width and height, at sides that depend on the image's id."""
    rng = random.Random(f"{shown.id} {size}")
    width, height = shown.record["width"], shown.record["height"]
    off_x, off_y = min(width - 1, max(1, round(width * size))), min(height - 1, max(1, round(height * size)))
    x, y = rng.randint(0, off_x), rng.randint(0, off_y)
    return x, y, x + width - off_x, y + height - off_y


def _cropped(shown: Shown, crop: Crop) -> Shown:
    size = (crop[2] - crop[0], crop[3] - crop[1])
    return with_image(shown, _opener(shown, crop), size, f"crop {','.join(map(str, crop))}")


def _opener(shown: Shown, crop: Crop) -> Callable[[], Image.Image]:
    return lambda: shown.open().crop(crop)


def _agreement(whole: Prediction, part: Prediction, crop: Crop) -> float | None:
    """The mean IoU of boxes before and after the crop, 0 for a box without a partner; None if there are none on both sides."""
    before = np.asarray(whole["objects"]["bbox"], dtype=float).reshape(-1, 4)
    after = np.asarray(part["objects"]["bbox"], dtype=float).reshape(-1, 4) + np.tile(crop[:2], 2)
    inside = before.clip(np.tile(crop[:2], 2), np.tile(crop[2:], 2))
    kept = np.flatnonzero(box_area(inside) >= LEAST_LEFT * box_area(before))
    labels = [whole["objects"]["category"][i] for i in kept]
    iou = box_iou(inside[kept], after) * same_label(labels, part["objects"]["category"])
    count = max(iou.shape)
    return sum(iou[pair] for pair in match_greedy(iou)) / count if count else None
