"""A record is one image of a prepared dataset: its size, its objects and the conversation about them.

docs/architecture.md describes the format. This module holds the types and what changes a record in memory;
record_checks.py validates records, dataset.py reads and writes them.
"""

import os
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike

from boxtune.data.boxes import box_area

SPLITS = ("train", "validation", "test")

# Where an image is cropped, an object stays part of the answer if at least this share of its area is visible. A quarter is the
# least that is visible of a box whose center is inside the crop, which is the rule of SSD (arXiv 1512.02325).
MIN_VISIBLE = 0.25

# The column of `objects` with a text about each object, or None.
CAPTION = "caption"

# An assistant turn that stands for all objects, or for the objects of one category. It must be the whole turn.
PLACEHOLDER = re.compile(r"<boxes(?::(.+))?>", re.DOTALL)


class Message(TypedDict):
    """One turn of a conversation. `role` is "user" or "assistant"."""

    role: str
    content: str


class Objects(TypedDict):
    """Parallel lists with one entry per object.

    `bbox` is [x0, y0, x1, y1] in pixels of the upright image. An object with `ignore` is not part of an answer and is
    neither right nor wrong in scoring. A record may hold further lists of the same length, such as `obj_id` or `caption`;
    `object_columns` gives access to them. Two have a meaning: `area`, see `stated_areas`, and `caption`, see `answer_captions`.
    """

    bbox: list[list[float]]
    category: list[str]
    ignore: list[bool]


class CutFrom(TypedDict):
    """Where a tile lies: `tile` is xyxy in pixels of the image with this id, width and height."""

    tile: list[float]
    id: str
    width: int
    height: int


class Record(TypedDict):
    """One line of a split file.

    `image` is an absolute path or relative to the dataset folder; `width` and `height` are those of the upright image.
    A record may hold further keys, which are kept when it is changed or written. Two exist in memory alone: `cut_from` of tiles
    (tiles.py), and `taught_by`, the examples that precede the record's own conversation (batching/teachers.py).
    """

    id: str
    image: str
    width: int
    height: int
    objects: Objects
    messages: list[Message]
    cut_from: NotRequired[CutFrom]
    taught_by: NotRequired[list["Record"]]


def object_columns(objects: Objects) -> dict[str, list[Any]]:
    """Every list of `objects` by its key, further keys included."""
    return cast(dict[str, list[Any]], objects)


def as_objects(columns: Mapping[str, list[Any]]) -> Objects:
    """The inverse of `object_columns`. The caller guarantees bbox, category and ignore."""
    return cast(Objects, columns)


def stated_areas(objects: Objects) -> list[float | None]:
    """The areas in square pixels that the source states (COCO: of the mask, not of the box); None where it states none.

    As in pycocotools they decide which objects are small, medium and large in AP. Without them the area of the box does.
    """
    return object_columns(objects).get("area") or [None] * len(objects["bbox"])


def raster_order(boxes_xyxy: list[list[float]]) -> list[int]:
    """Positions of the boxes in reading order: sorted by top edge, then by left edge."""
    return sorted(range(len(boxes_xyxy)), key=lambda i: (boxes_xyxy[i][1], boxes_xyxy[i][0]))


def fixed_sample(records: list[Record], count: int) -> list[Record]:
    """At most `count` of the records, always the same ones, in their order."""
    return [records[i] for i in sorted(random.Random(0).sample(range(len(records)), min(count, len(records))))]


def in_order(record: Record, order: str) -> Record:
    """The record with its objects in another order.

    "source" keeps the order of the annotations, "raster" sorts by top and then left edge, "area" puts the largest
    first, "random" shuffles with the record's id as the seed.
    """
    boxes_xyxy = record["objects"]["bbox"]
    positions = list(range(len(boxes_xyxy)))
    if order == "raster":
        positions = raster_order(boxes_xyxy)
    elif order == "area":
        areas = box_area(boxes_xyxy)
        positions.sort(key=lambda i: -areas[i])
    elif order == "random":
        random.Random(record["id"]).shuffle(positions)
    return with_objects(record, positions)


def with_objects(record: Record, positions: Iterable[int]) -> Record:
    """The record with only the objects at `positions`, in that order."""
    positions = list(positions)
    columns = object_columns(record["objects"])
    return record | {"objects": as_objects({key: [column[i] for i in positions] for key, column in columns.items()})}


def visible_objects(record: Record, boxes_xyxy: ArrayLike, image_size: tuple[int, int]) -> Objects:
    """The record's objects in a cropped image of (width, height) `image_size`.

    boxes_xyxy: all their boxes in pixels of that image, which may extend beyond it. They are clipped to the image. An object
    with less than MIN_VISIBLE of its area left becomes ignored, and one with nothing left is removed.
    """
    whole = np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)
    width, height = image_size
    inside = whole.clip(0, [width, height, width, height])
    visible = np.minimum(inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1]) > 0
    shares = np.divide(box_area(inside), box_area(whole), out=np.zeros(len(inside)), where=visible)
    kept = np.flatnonzero(visible).tolist()
    objects = with_objects(record, kept)["objects"]
    objects["bbox"] = inside[kept].tolist()
    objects["ignore"] = [bool(record["objects"]["ignore"][i] or shares[i] < MIN_VISIBLE) for i in kept]
    return objects


def answer_objects(record: Record, category: str | None = None) -> tuple[list[list[float]], list[str]]:
    """(boxes_xyxy, labels) that an answer names: all objects that are not ignored, or those of one category."""
    objects = record["objects"]
    kept = _answered(objects, category)
    return [objects["bbox"][i] for i in kept], [objects["category"][i] for i in kept]


def answer_captions(record: Record, category: str | None = None) -> list[str | None]:
    """The captions of `answer_objects`, without outer space; None for an object that has none."""
    objects = record["objects"]
    captions = object_columns(objects).get(CAPTION) or [None] * len(objects["bbox"])
    return [(captions[i] or "").strip() or None for i in _answered(objects, category)]


def _answered(objects: Objects, category: str | None) -> list[int]:
    """Positions of the objects that an answer names."""
    pairs = zip(objects["category"], objects["ignore"], strict=True)
    return [i for i, (label, ignored) in enumerate(pairs) if not ignored and category in (None, label)]


def shown_records(record: Record) -> list[Record]:
    """The records whose images and turns make up the conversation, in order: the teachers, then the record itself."""
    return [*record.get("taught_by", []), record]


def image_path(record: Record, directory: Path) -> Path:
    """The path of the record's image. `directory` is the dataset folder, to which `image` may be relative."""
    return Path(directory) / record["image"]


def with_absolute_image(record: Record, directory: Path) -> Record:
    """The record with the absolute path of its image, whose links are not followed, so that it can move to another folder."""
    return record | {"image": os.path.abspath(image_path(record, directory))}


def flat_name(record_id: str) -> str:
    """An id as the name of one file: the folders become part of the name."""
    return record_id.replace("%", "%25").replace("/", "%2F")
