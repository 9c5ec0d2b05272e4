"""Noise objects: wrong boxes at the end of a training answer, labelled as such.

Pix2Seq's sequence augmentation (arXiv 2109.10852, section 2.3). A model that has learned when to stop stops too early and
misses objects. Here it goes on past the true objects, with boxes whose coordinates are not learned (they are wrong) and
whose label says so; when it answers, objects with that label are dropped. Pix2Seq fills every answer up to a hundred
objects; here their number follows that of the true ones, so that answers stay short and an empty one stays empty.
"""

import math
import random

import numpy as np

from boxtune.answers.codecs import Answer
from boxtune.common.errors import UserError
from boxtune.data.records import Record, answer_objects, with_objects

# What noise objects are labelled, and the kind of problem that they are in predictions.
NOISE_LABEL = "noise"


def require_free_label(classes: list[str]) -> None:
    """Raises UserError where a class could be taken for noise."""
    taken = [name for name in classes if name.strip().casefold() == NOISE_LABEL]
    if taken:
        raise UserError(
            f"noise_objects: the data set has a class {taken[0]!r}, which is what noise objects are labelled. Prepare the "
            f"data again with --rename {taken[0]}=OTHER, or set noise_objects: 0."
        )


def with_noise(record: Record, per_object: float, draw: random.Random) -> Record:
    """The record with `per_object` noise objects, on average, for each that its answer names, appended at random."""
    boxes_xyxy, _ = answer_objects(record)
    count = math.floor(per_object * len(boxes_xyxy) + draw.random())
    size = (record["width"], record["height"])
    return _append(record, [_noise_box(boxes_xyxy, size, draw) for _ in range(count)])


def with_longest_noise(record: Record, per_object: float) -> Record:
    """The record with as many noise objects as `with_noise` may append, in the coordinates that take most digits."""
    width, height = record["width"], record["height"]
    count = math.ceil(per_object * len(answer_objects(record)[0]))
    return _append(record, [[0.999 * width, 0.999 * height, float(width), float(height)]] * count)


def without_noise(answer: Answer, noise_label: str) -> Answer:
    """The answer without the objects labelled `noise_label`; each of them is named in its problems."""
    kept = [i for i, label in enumerate(answer.labels) if label != noise_label]
    return Answer(
        boxes_xyxy=[answer.boxes_xyxy[i] for i in kept if answer.boxes_xyxy],
        points_xy=[answer.points_xy[i] for i in kept if answer.points_xy],
        labels=[answer.labels[i] for i in kept],
        places=[answer.places[i] for i in kept],
        problems=answer.problems + [NOISE_LABEL] * (len(answer.labels) - len(kept)),
    )


def true_objects(record: Record, noise_label: str) -> Record:
    """The record without its noise objects."""
    kept = [i for i, label in enumerate(record["objects"]["category"]) if label != noise_label]
    return with_objects(record, kept)


def _append(record: Record, boxes_xyxy: list[list[float]]) -> Record:
    count = len(boxes_xyxy)
    own = {"bbox": boxes_xyxy, "category": [NOISE_LABEL] * count, "ignore": [False] * count}
    objects = {key: column + own.get(key, [None] * count) for key, column in record["objects"].items()}
    return record | {"objects": objects}


def _noise_box(boxes_xyxy: list[list[float]], size: tuple[int, int], draw: random.Random) -> list[float]:
    """A true box again, one scaled and shifted by up to half its size, or one drawn anywhere."""
    kind = draw.choice(("duplicate", "shifted", "random"))
    if kind == "random":
        (x0, x1), (y0, y1) = (sorted(draw.uniform(0, side) for _ in range(2)) for side in size)
        return [x0, y0, x1, y1]
    box = draw.choice(boxes_xyxy)
    if kind == "duplicate":
        return box
    edges = []
    for low, high, side in zip(box[:2], box[2:], size, strict=True):
        half = (high - low) / 2 * draw.uniform(0.5, 1.5)
        middle = (low + high) / 2 + (high - low) * draw.uniform(-0.5, 0.5)
        edges.append(np.clip([middle - half, middle + half], 0, side).tolist())
    shifted = [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]
    return shifted if shifted[0] < shifted[2] and shifted[1] < shifted[3] else box
