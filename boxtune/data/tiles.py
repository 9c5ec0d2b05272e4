"""Tiles: overlapping parts of an image that are asked about, and trained on, like images of their own. See docs/decoding.md.

A tile is a record whose width, height and objects are those of the tile. Its key `cut_from` says where it lies in which image.
"""

import math
import random
from collections.abc import Sequence

from PIL import Image

from boxtune.data.images import FAITHFUL_ASPECT_RATIO
from boxtune.data.questions import answers_are_boxes
from boxtune.data.records import Record, visible_objects

# Neighbouring tiles share at least this part of their side (sahi's default, too). An object that is no wider and no higher than
# the shared part lies whole in some tile.
OVERLAP = 0.2


def tile_grid(width: int, height: int, side: int) -> list[list[int]]:
    """Tiles (xyxy) of up to `side` pixels that cover an image, row by row; none if one tile would be the whole image.

    All tiles of an image have one size and are spread evenly. They are never longer than FAITHFUL_ASPECT_RATIO, so an image
    that is longer is cut even if it is smaller than `side`.
    """
    tile_width, tile_height = min(side, width), min(side, height)
    tile_width = min(tile_width, FAITHFUL_ASPECT_RATIO * tile_height)
    tile_height = min(tile_height, FAITHFUL_ASPECT_RATIO * tile_width)
    if (tile_width, tile_height) == (width, height):
        return []
    return [
        [x, y, x + tile_width, y + tile_height]
        for y in _starts(height, tile_height)
        for x in _starts(width, tile_width)
    ]


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles start along a side of the image: evenly spread, the first and the last at the borders."""
    shared = math.ceil(OVERLAP * tile)
    steps = math.ceil((length - tile) / (tile - shared)) if tile < length else 0
    return [round(i * (length - tile) / steps) for i in range(steps + 1)] if steps else [0]


def views_of(record: Record, side: int) -> list[Record]:
    """The record and its tiles of `side` pixels, with the objects that each of them shows; the record alone if `side` is 0.

    An image longer than FAITHFUL_ASPECT_RATIO is seen in tiles only.
    """
    width, height = record["width"], record["height"]
    grid = tile_grid(width, height, side) if side else []
    is_long = max(width, height) > FAITHFUL_ASPECT_RATIO * min(width, height)
    return ([] if grid and is_long else [record]) + [cut(record, tile) for tile in grid]


def training_views(record: Record, side: int) -> list[Record]:
    """`views_of`, but of the tiles without an object to name only as many as there are with one, and at least one.

    Otherwise most examples could be empty, and the model would learn to name nothing. The choice depends on the id. A record
    with an answer in plain text is not cut, because the answer may be untrue of a tile.
    """
    views = views_of(record, side) if answers_are_boxes(record) else [record]
    empty = [i for i, view in enumerate(views) if tile_of(view) and all(view["objects"]["ignore"])]
    filled = sum(tile_of(view) is not None for view in views) - len(empty)
    drawn = random.Random(record["id"]).sample(empty, min(len(empty), max(1, filled)))
    dropped = set(empty) - set(drawn)
    return [view for i, view in enumerate(views) if i not in dropped]


def cut(record: Record, tile_xyxy: Sequence[float]) -> Record:
    """The record of a tile. Its objects are in pixels of the tile, and clipped as by a crop (`visible_objects`)."""
    x0, y0, x1, y1 = tile_xyxy
    moved = [[left - x0, top - y0, right - x0, bottom - y0] for left, top, right, bottom in record["objects"]["bbox"]]
    width, height = int(x1 - x0), int(y1 - y0)
    return record | {
        "id": f"{record['id']} (tile {x0},{y0})",
        "width": width,
        "height": height,
        "objects": visible_objects(record, moved, (width, height)),
        "cut_from": {
            "tile": list(tile_xyxy),
            "id": record["id"],
            "width": record["width"],
            "height": record["height"],
        },
    }


def tile_of(record: Record) -> list[float] | None:
    """The tile (xyxy in pixels of its image) that the record is; None if it is a whole image."""
    return record["cut_from"]["tile"] if "cut_from" in record else None


def whole_of(record: Record) -> Record:
    """The record of the image that a tile was cut from, except that its objects are the tile's; a whole image stays as it is."""
    if "cut_from" not in record:
        return record
    whole = record.copy()
    source = whole.pop("cut_from")
    return whole | {"id": source["id"], "width": source["width"], "height": source["height"]}


def cut_image(image: Image.Image, record: Record) -> Image.Image:
    """What the record shows of its image, which is whole and upright."""
    if "cut_from" not in record:
        return image
    x0, y0, x1, y1 = map(int, record["cut_from"]["tile"])
    return image.crop((x0, y0, x1, y1))
