"""Noise objects: wrong boxes, labeled as noise, at the end of a training answer.

This is the sequence augmentation of Pix2Seq (arXiv 2109.10852, section 2.3). A model that learns where its training answers
end stops too early and misses objects. With noise objects, the answer continues after the real objects. The coordinates of
noise are not trained, because they are wrong; its label is. Objects that the model labels as noise are dropped when its
response is read.

Pix2Seq pads every answer to a hundred objects. Here the number of noise objects is proportional to the number of real ones:
answers stay short, and an empty answer stays empty.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from boxtune.answers.codecs import Answer
from boxtune.common.errors import UserError
from boxtune.data.records import Record, answer_objects, as_objects, object_columns, with_objects

# The label of noise objects in answers, and the kind of problem that dropped noise objects are in predictions.
NOISE_LABEL = "noise"


def require_free_label(classes: list[str]) -> None:
    """Raises UserError if a class has the name of the noise label."""
    taken = [name for name in classes if name.strip().casefold() == NOISE_LABEL]
    if taken:
        raise UserError(
            f"noise_objects: the dataset has a class {taken[0]!r}, which is the label of noise objects. Prepare the "
            f"data again with --rename {taken[0]}=OTHER, or set noise_objects: 0."
        )


def with_noise(record: Record, per_object: float, draw: random.Random) -> Record:
    """The record with noise objects appended: on average `per_object` for each object of its answer."""
    boxes_xyxy, _ = answer_objects(record)
    count = math.floor(per_object * len(boxes_xyxy) + draw.random())
    size = (record["width"], record["height"])
    return _with_noise_boxes(record, [_noise_box(boxes_xyxy, size, draw) for _ in range(count)])


def with_longest_noise(record: Record, per_object: float) -> Record:
    """The record with as many noise objects as `with_noise` can append, with coordinates of the most digits."""
    width, height = record["width"], record["height"]
    count = math.ceil(per_object * len(answer_objects(record)[0]))
    return _with_noise_boxes(record, [[0.999 * width, 0.999 * height, float(width), float(height)]] * count)


def without_noise(answer: Answer, noise_label: str) -> Answer:
    """The answer without the objects labeled `noise_label`. Each of them adds the problem "noise"."""
    kept = [i for i, label in enumerate(answer.labels) if label != noise_label]
    dropped = len(answer.labels) - len(kept)
    return Answer(
        boxes_xyxy=[answer.boxes_xyxy[i] for i in kept if answer.boxes_xyxy],
        points_xy=[answer.points_xy[i] for i in kept if answer.points_xy],
        labels=[answer.labels[i] for i in kept],
        captions=[answer.captions[i] for i in kept if answer.captions],
        places=[answer.places[i] for i in kept],
        problems=answer.problems + [NOISE_LABEL] * dropped,
    )


def true_objects(record: Record, noise_label: str) -> Record:
    """The record without its noise objects."""
    kept = [i for i, label in enumerate(record["objects"]["category"]) if label != noise_label]
    return with_objects(record, kept)


def _with_noise_boxes(record: Record, boxes_xyxy: list[list[float]]) -> Record:
    """The record with these boxes appended as noise objects. Further columns get None."""
    count = len(boxes_xyxy)
    noise: dict[str, list[Any]] = {"bbox": boxes_xyxy, "category": [NOISE_LABEL] * count, "ignore": [False] * count}
    columns = {
        key: column + noise.get(key, [None] * count) for key, column in object_columns(record["objects"]).items()
    }
    return record | {"objects": as_objects(columns)}


def _noise_box(boxes_xyxy: list[list[float]], size: tuple[int, int], draw: random.Random) -> list[float]:
    """A copy of a real box, a real box scaled and shifted by up to half its size, or a random box. `size` is (width, height)."""
    kind = draw.choice(("duplicate", "shifted", "random"))
    if kind == "random":
        x0, x1 = sorted(draw.uniform(0, size[0]) for _ in range(2))
        y0, y1 = sorted(draw.uniform(0, size[1]) for _ in range(2))
        return [x0, y0, x1, y1]
    box = draw.choice(boxes_xyxy)
    if kind == "duplicate":
        return box
    x0, x1 = _shifted(box[0], box[2], size[0], draw)
    y0, y1 = _shifted(box[1], box[3], size[1], draw)
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else box


def _shifted(low: float, high: float, side: int, draw: random.Random) -> Sequence[float]:
    """Two edges scaled around their middle and shifted, within the image."""
    half = (high - low) / 2 * draw.uniform(0.5, 1.5)
    middle = (low + high) / 2 + (high - low) * draw.uniform(-0.5, 0.5)
    return [float(edge) for edge in np.clip([middle - half, middle + half], 0, side)]
