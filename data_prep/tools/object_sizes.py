"""How large the objects and images of a dataset are for a model, at a given pixel budget."""

import numpy as np

from boxtune.data.records import Record
from boxtune.families.family import Family

# The share of objects that a suggested budget must keep large enough.
_KEPT = 0.99


def shorter_sides(records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """((N,) shorter sides of all objects, (N,) areas of their images), in pixels and square pixels of the images."""
    sides, areas = [], []
    for record in records:
        for x0, y0, x1, y1 in record["objects"]["bbox"]:
            sides.append(min(x1 - x0, y1 - y0))
            areas.append(record["width"] * record["height"])
    return np.array(sides, dtype=np.float64), np.array(areas, dtype=np.float64)


def scale_at(areas: np.ndarray, max_pixels: float) -> np.ndarray:
    """(N,) factors by which images of these areas shrink. An image that fits the budget keeps its size."""
    scale: np.ndarray = np.sqrt(np.minimum(1.0, max_pixels / areas))
    return scale


def too_small(records: list[Record], family: Family, max_pixels: float) -> np.ndarray:
    """(N,) bool: which objects are thinner than one patch after their image is resized to the budget."""
    sides, areas = shorter_sides(records)
    small: np.ndarray = sides * scale_at(areas, max_pixels) < family.patch_size
    return small


def keeping_budget(records: list[Record], family: Family) -> int | None:
    """The smallest max_pixels at which 99 % of the objects are at least one patch thick, as a multiple of a token's area.

    Objects that are thinner than a patch in the original image are not counted. None if there are no others.
    """
    sides, areas = shorter_sides(records)
    resolved = sides >= family.patch_size
    if not resolved.any():
        return None
    needed = areas[resolved] * (family.patch_size / sides[resolved]) ** 2
    token = family.factor**2
    return int(np.ceil(np.quantile(needed, _KEPT, method="higher") / token) * token)


def image_tokens(records: list[Record], family: Family, max_pixels: int) -> np.ndarray:
    """(N,) approximate number of tokens of each image: rounding of its sides to whole tokens is ignored."""
    areas = np.array([record["width"] * record["height"] for record in records], dtype=np.float64)
    tokens: np.ndarray = np.minimum(areas, max_pixels) / family.factor**2
    return tokens
