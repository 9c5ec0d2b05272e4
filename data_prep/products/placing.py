"""Where packages are in an image: one label photographed from close, or whole packages from a distance.

People who contribute to Open Food Facts photograph the label, so most images are close views. The first four images of
openfoodfacts/nutrition-table-detection on its dataset page have tables that cover 53, 16, 95 and 14 % of the image. These are
the only sizes that we know; the ranges and frequencies here are our assumptions.
"""

import math
from itertools import pairwise

import numpy as np

from data_prep.products.faces import MARGIN, Rectangle
from data_prep.products.geometry import bound, signed_area, visible_part
from data_prep.products.packages import Package, make_package
from data_prep.products.words import pick

VIEWS, VIEWS_SHARE = ("close", "distant"), (0.8, 0.2)
PACKAGES = ((1, 2), (1, 1, 1, 2), (1, 2), (2, 3))  # possible numbers of distant packages for each number of tables
SMALLEST_TABLE = 0.09  # minimum side of a table's box, as a share of the image's shorter side
VISIBLE = 0.75  # minimum share of a table's box, and of a distant package, that is inside the image
CLOSE_TABLE = (0.15, 0.95)  # range of the share of a close image that its largest table's box (or other panel's) covers
USUAL_TABLE = 0.3  # the most frequent such share, before it is reduced so that all tables fit into the image
CLOSE_PACKAGE = 0.6  # minimum share of a close image that the package covers


def random_view(rng: np.random.Generator) -> str:
    return VIEWS[int(rng.choice(len(VIEWS), p=VIEWS_SHARE))]


def compose(rng: np.random.Generator, width: int, height: int, tables: int, view: str) -> list[Package]:
    """Packages from back to front, in one of VIEWS. Every nutrition table is large enough, inside the image and not hidden."""
    return _close(rng, width, height, tables) if view == "close" else _distant(rng, width, height, tables)


def _tables_visible(package: Package, width: int, height: int, in_front: list[list[float]]) -> bool:
    """Whether the tables of a package are large enough, inside the image and not covered by the boxes in front."""
    for outline in map(package.outline, package.tables):
        part = visible_part(outline, width, height)
        if signed_area(part) < VISIBLE * signed_area(outline):
            return False
        x0, y0, x1, y1 = bound(part)
        if min(x1 - x0, y1 - y0) < SMALLEST_TABLE * min(width, height):
            return False
        if any(other[0] < x1 and other[1] < y1 and other[2] > x0 and other[3] > y0 for other in in_front):
            return False
    return True


# ---- from close ------------------------------------------------------------------------------------------------------


def _close(rng: np.random.Generator, width: int, height: int, tables: int) -> list[Package]:
    """One package that is larger than the image. Its largest table, or other panel if it has no table, covers a share of the
    image in CLOSE_TABLE."""
    while True:
        smallest, largest = CLOSE_TABLE
        share = rng.triangular(smallest, USUAL_TABLE, largest / max(tables, 1))
        package = _label(rng, width, height, tables, share)
        if not _shown(package):  # the front of a package
            continue
        boxes_xyxy = np.array([bound(package.outline(rectangle)) for rectangle in _shown(package)])
        areas = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
        if not tables:
            boxes_xyxy = boxes_xyxy[[areas.argmax()]]
        low, high = boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)
        fit = rng.uniform(0.85, 1) * ((width, height) / (high - low)).min()
        zoom = min(math.sqrt(share * width * height / areas.max()), fit)
        if zoom > 1.5:  # the print would be too blurred
            continue
        package, low, high = package.zoomed(zoom), zoom * low, zoom * high
        margin = pick(rng, (0, 0, 0, 0.12)) * (high - low)  # this much may be cut off at a border
        for _ in range(10):
            start, end = -low - margin, (width, height) - high + margin
            moved = package.moved(tuple(start + (end - start) * rng.random(2)))
            if _tables_visible(moved, width, height, []) and _fills(moved, width, height):
                return [moved]


def _label(rng: np.random.Generator, width: int, height: int, tables: int, share: float) -> Package:
    """A package that is larger than the image, with panels that each cover very roughly `share` of the image."""
    roll = rng.normal(0, 0.09)
    if rng.random() < 0.15:
        roll, width, height = roll + pick(rng, (math.pi / 2, -math.pi / 2)), height, width
    column = math.sqrt(1.3 * share * width * height) / 0.8
    across, down = max(width * rng.uniform(1.1, 1.5), 1.05 * column), height * rng.uniform(1.1, 1.5)
    return make_package(rng, round(across), round(down), roll, tables, column)


def _fills(package: Package, width: int, height: int) -> bool:
    """Whether a close package covers enough of the image, and so does its largest table (or panel, if it has no table)."""
    front, _ = package.polygons()[-1]
    if signed_area(visible_part(front, width, height)) < CLOSE_PACKAGE * width * height:
        return False
    parts = [visible_part(package.outline(rectangle), width, height) for rectangle in _shown(package)]
    boxes = [bound(part) for part in parts if len(part) > 2]
    largest = max((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes)
    return CLOSE_TABLE[0] <= largest / (width * height) <= CLOSE_TABLE[1]


def _shown(package: Package) -> list[Rectangle]:
    """What a close image is taken for: the tables of a package, or its other panels if it has none."""
    return package.tables or [rectangle for _, rectangle in package.panels]


# ---- from a distance -------------------------------------------------------------------------------------------------


def _distant(rng: np.random.Generator, width: int, height: int, tables: int) -> list[Package]:
    """One to three whole packages, which may be cut off a little."""
    count = pick(rng, PACKAGES[tables])
    shares = [tables // count + (i < tables % count) for i in range(count)]
    while True:
        slots = _slots(rng, width, height, count)
        drawn = [_fitting(rng, slot, n, count == 1) for slot, n in zip(slots, rng.permutation(shares), strict=True)]
        for _ in range(10):  # moving a package is cheap, drawing it is not
            packages = [p.moved(_position(rng, slot, count == 1)) for p, slot in zip(drawn, slots, strict=True)]
            if all(_well_placed(packages, i, width, height) for i in range(count)):
                return packages


def _slots(rng: np.random.Generator, width: int, height: int, count: int) -> list[Rectangle]:
    """Strips (xyxy) side by side along the longer side, of different widths."""
    cuts = np.cumsum([0, *rng.dirichlet([12] * count)])
    if width * rng.uniform(0.8, 1.25) > height:
        return [(width * a, 0, width * b, height) for a, b in pairwise(cuts)]
    return [(0, height * a, width, height * b) for a, b in pairwise(cuts)]


def _fitting(rng: np.random.Generator, slot: Rectangle, tables: int, alone: bool) -> Package:
    """A package with a size that fits a slot. One that is alone may be smaller."""
    x0, y0, x1, y1 = slot
    roll = rng.normal(0, 0.09)
    aspect = math.exp(rng.uniform(-0.75, 0.55))
    across, down = aspect, 1.0
    if rng.random() < 0.2:
        roll, across, down = roll + pick(rng, (math.pi / 2, -math.pi / 2)), down, across
    zoom = rng.uniform(0.5 if alone else 0.75, 1)
    height = zoom * min((x1 - x0) / across, (y1 - y0) / down)
    return make_package(rng, round(height * aspect) + 2 * MARGIN, round(height) + 2 * MARGIN, roll, int(tables))


def _position(rng: np.random.Generator, slot: Rectangle, alone: bool) -> tuple[float, float]:
    """A random position for the center of a package, near the center of its slot."""
    x0, y0, x1, y1 = slot
    reach = 0.5 if alone else 0.06
    x, y = rng.uniform(0.5 - reach, 0.5 + reach, 2)
    return x0 + (x1 - x0) * x, y0 + (y1 - y0) * y


def _well_placed(packages: list[Package], i: int, width: int, height: int) -> bool:
    """Whether enough of package `i` is visible, and its tables are large, visible and not covered by packages in front."""
    *_, (front, _) = packages[i].polygons()
    visible_area = signed_area(visible_part(front, width, height))
    if visible_area < min(VISIBLE * signed_area(front), 0.3 * width * height):
        return False
    in_front = [bound(np.concatenate([side for side, _ in other.polygons()])) for other in packages[i + 1 :]]
    return _tables_visible(packages[i], width, height, in_front)
