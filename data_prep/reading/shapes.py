"""Upright boxes around the shapes of annotation tools.

A shape with bad values is returned as the list of those values, so that the pipeline lists it as a bad box.
"""

import math
from collections.abc import Sequence
from typing import Any

# Coordinates beyond this are not plausible. Infinity and NaN fail the comparison too.
LARGEST = 1e9


def box_of_corner(x: Any, y: Any, width: Any, height: Any) -> list[Any]:
    """[x0, y0, x1, y1] of a top left corner and a size; the four values if they are not numbers."""
    values = [x, y, width, height]
    return [x, y, x + width, y + height] if are_numbers(values, 4) else values


def box_of_points(points: Sequence[Any]) -> list[Any]:
    """[x0, y0, x1, y1] around points [[x, y], …]; the points themselves if there are fewer than two or one is malformed."""
    if len(points) < 2 or not all(isinstance(point, list | tuple) and are_numbers(point, 2) for point in points):
        return list(points)
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def box_of_ellipse(cx: Any, cy: Any, rx: Any, ry: Any, degrees: Any = 0) -> list[Any]:
    """[x0, y0, x1, y1] around an ellipse that is rotated about its center; the five values if they are not numbers.

    An ellipse with radii a and b, rotated by t, extends √(a² cos² t + b² sin² t) to either side of its center.
    """
    values = [cx, cy, rx, ry, degrees]
    if not are_numbers(values, 5):
        return values
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(rx * cosine, ry * sine), math.hypot(rx * sine, ry * cosine)
    return [cx - half_width, cy - half_height, cx + half_width, cy + half_height]


def box_of_rotated(box_xyxy: list[Any], degrees: Any, center: list[Any]) -> list[Any]:
    """[x0, y0, x1, y1] around a rectangle that is rotated clockwise (y points down) about `center`, [x, y]."""
    if not are_numbers([*box_xyxy, degrees, *center], 7):
        return [*box_xyxy, degrees]
    if not degrees:
        return box_xyxy
    x0, y0, x1, y1 = box_xyxy
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - center[0], y - center[1]) for x in (x0, x1) for y in (y0, y1)]
    return box_of_points([[center[0] + x * cosine - y * sine, center[1] + x * sine + y * cosine] for x, y in corners])


def are_numbers(values: Sequence[Any], count: int) -> bool:
    """Whether `values` are `count` numbers that can be coordinates, small enough that arithmetic does not overflow."""
    return len(values) == count and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST for value in values
    )
