"""The upright box around the shapes that annotation tools draw. What is no shape comes back as it was, to be listed."""

import math

# Larger numbers are no coordinates, and infinite ones and NaN fail the comparison.
LARGEST = 1e9


def box_of_corner(x, y, width, height) -> list:
    """[x0, y0, x1, y1] of a top left corner and a size; the four values where they are no numbers."""
    values = [x, y, width, height]
    return [x, y, x + width, y + height] if are_numbers(values, 4) else values


def box_of_points(points: list) -> list:
    """[x0, y0, x1, y1] around [[x, y], …]; the points themselves where there are fewer than two, or they are no numbers."""
    if len(points) < 2 or not all(isinstance(point, list | tuple) and are_numbers(point, 2) for point in points):
        return points
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def box_of_ellipse(cx, cy, rx, ry, degrees=0) -> list:
    """[x0, y0, x1, y1] around an ellipse that is turned about its centre."""
    values = [cx, cy, rx, ry, degrees]
    if not are_numbers(values, 5):
        return values
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(rx * cosine, ry * sine), math.hypot(rx * sine, ry * cosine)
    return [cx - half_width, cy - half_height, cx + half_width, cy + half_height]


def box_of_turned(box_xyxy: list, degrees, about: list) -> list:
    """[x0, y0, x1, y1] around a rectangle turned clockwise (y points down) about a point."""
    if not are_numbers([*box_xyxy, degrees, *about], 7):
        return [*box_xyxy, degrees]
    if not degrees:
        return box_xyxy
    x0, y0, x1, y1 = box_xyxy
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - about[0], y - about[1]) for x in (x0, x1) for y in (y0, y1)]
    return box_of_points([[about[0] + x * cosine - y * sine, about[1] + x * sine + y * cosine] for x, y in corners])


def are_numbers(values, count: int) -> bool:
    """Whether there are `count` numbers that can be coordinates, by which arithmetic neither fails nor overflows."""
    return len(values) == count and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST for value in values
    )
