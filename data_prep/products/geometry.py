"""Polygons in an image: their area, the part that is inside the image, and their box."""

import numpy as np


def signed_area(polygon: np.ndarray) -> float:
    """The area of an (N, 2) polygon, by the shoelace formula; positive if it is clockwise in an image, where y points down."""
    x, y = np.vstack([polygon, polygon[:1]]).T
    return float(x[:-1] @ y[1:] - y[:-1] @ x[1:]) / 2


def visible_part(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """(M, 2) corners of the part of an (N, 2) polygon that is inside the image, by Sutherland–Hodgman clipping; M is 0 if the
    polygon is outside."""
    for axis, limit, sign in ((0, 0, 1), (1, 0, 1), (0, width, -1), (1, height, -1)):
        inside = sign * (polygon[:, axis] - limit)
        kept = []
        for p, q, a, b in zip(polygon, np.roll(polygon, -1, 0), inside, np.roll(inside, -1), strict=True):
            if a >= 0:
                kept.append(p)
            if a * b < 0:
                kept.append(p + (q - p) * a / (a - b))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def bound(polygon: np.ndarray) -> list[float]:
    """[x0, y0, x1, y1] of (N, 2) points, rounded to a tenth of a pixel."""
    box: list[float] = np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]).round(1).tolist()
    return box
