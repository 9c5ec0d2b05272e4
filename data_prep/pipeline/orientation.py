"""Boxes of images that are stored rotated, with the rotation in their EXIF data."""

from boxtune.data.image_checks import ImageFacts
from data_prep.reading.source import Item


def annotated_size(item: Item, facts: ImageFacts) -> tuple[int, int]:
    """(width, height) of the pixels for which the boxes are written: the stored ones if the source states their size,
    else the upright ones."""
    return facts.stored if item.size == facts.stored else facts.upright


def to_upright(box_xyxy: list[float], stored: tuple[int, int], orientation: int) -> list[float]:
    """A box on the stored pixels → the box on the upright image.

    `stored` is (width, height) as stored. `orientation` is the value of the EXIF tag (CIPA DC-008, Orientation) and must
    be one of 5 to 8, which exchange width and height.
    """
    x0, y0, x1, y1 = box_xyxy
    width, height = stored
    return {
        5: [y0, x0, y1, x1],
        6: [height - y1, x0, height - y0, x1],
        7: [height - y1, width - x1, height - y0, width - x0],
        8: [y0, width - x1, y1, width - x0],
    }[orientation]
