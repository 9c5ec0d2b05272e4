"""Photographs of invented food packages: a background, one to three packages, lighting and lens.

`draw_image(seed, index)` depends only on its arguments.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.products.backgrounds import draw_background
from data_prep.products.faces import MARGIN, Rectangle
from data_prep.products.packages import Package, make_package, signed_area
from data_prep.products.textures import fractal, multiplication_table
from data_prep.products.words import pick

ASPECTS = (3 / 4, 4 / 3, 1, 2 / 3, 3 / 2, 9 / 16, 16 / 9)
TABLES, TABLES_SHARE = (0, 1, 2, 3), (0.12, 0.56, 0.22, 0.10)
PACKAGES = ((1, 2), (1, 1, 1, 2), (1, 2), (2, 3))  # possible numbers of packages for each number of tables
SMALLEST_TABLE = 0.09  # minimum side of a table's box, as a share of the image's shorter side
VISIBLE = 0.75  # minimum share of a table's box, and of a package's, that is inside the image


class DrawnImage(NamedTuple):
    image: Image.Image
    boxes_xyxy: list[list[float]]  # of the nutrition tables, in pixels
    jpeg_quality: int


def draw_image(seed: int, index: int, size: int = 448) -> DrawnImage:
    """Image `index` of a seed. Its longer side is 0.7 to 1.4 times `size`, in pixels."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    long_side, aspect = size * rng.uniform(0.7, 1.4), pick(rng, ASPECTS)
    width, height = round(long_side * min(aspect, 1)), round(long_side / max(aspect, 1))
    packages = compose(rng, width, height, int(rng.choice(TABLES, p=TABLES_SHARE)))
    outlines = [package.outline(table) for package in packages for table in package.tables]
    boxes = [bound(visible_part(outline, width, height)) for outline in outlines]
    image = photograph(rng, packages, width, height)
    return DrawnImage(image, boxes, int(rng.integers(55, 96)))


# ---- geometry --------------------------------------------------------------------------------------------------------


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


# ---- placing packages ------------------------------------------------------------------------------------------------


def compose(rng: np.random.Generator, width: int, height: int, tables: int) -> list[Package]:
    """Packages from back to front. Every nutrition table is large enough, inside the image and not hidden."""
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
    """A package with a size that fits a slot. A single package may be so close that it overflows the slot."""
    x0, y0, x1, y1 = slot
    roll = rng.normal(0, 0.09)
    aspect = math.exp(rng.uniform(-0.75, 0.55))
    across, down = aspect, 1.0
    if rng.random() < 0.2:
        roll, across, down = roll + pick(rng, (math.pi / 2, -math.pi / 2)), down, across
    zoom = rng.uniform(0.75, 1) if not alone else rng.uniform(0.7, 2 if tables else 1.2)
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
    for outline in map(packages[i].outline, packages[i].tables):
        part = visible_part(outline, width, height)
        if signed_area(part) < VISIBLE * signed_area(outline):
            return False
        x0, y0, x1, y1 = bound(part)
        if min(x1 - x0, y1 - y0) < SMALLEST_TABLE * min(width, height):
            return False
        if any(other[0] < x1 and other[1] < y1 and other[2] > x0 and other[3] > y0 for other in in_front):
            return False
    return True


# ---- the photograph --------------------------------------------------------------------------------------------------


def photograph(rng: np.random.Generator, packages: list[Package], width: int, height: int) -> Image.Image:
    """The packages, from back to front, on a background and as seen through a lens."""
    image = draw_background(rng, width, height)
    for package in packages:
        _draw_package(rng, package, image)
    return _expose(rng, image)


def _draw_package(rng: np.random.Generator, package: Package, image: Image.Image) -> None:
    """Draws the shadow of a package, its sides and its front."""
    width, height = image.size
    polygons = package.polygons()
    shadow, offset = Image.new("L", (width // 4 + 1, height // 4 + 1)), rng.uniform(0, 2, 2)
    for corners, _ in polygons:
        ImageDraw.Draw(shadow).polygon((corners / 4 + offset).ravel().tolist(), fill=150)
    shadow = shadow.filter(ImageFilter.GaussianBlur(2)).resize((width, height), Image.Resampling.BILINEAR)
    image.paste((15, 12, 10), (0, 0), shadow)
    draw = ImageDraw.Draw(image)
    for corners, brightness in polygons[:-1]:
        fill = tuple(min(round(c * brightness), 255) for c in package.color)
        draw.polygon(corners.ravel().tolist(), fill=fill)
        draw.line(corners[:2].ravel().tolist(), fill=fill, width=3)  # under the soft edge of the front
    part, corner = package.warp(package.face, (width, height))
    image.paste(part, corner, part)


def _expose(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Adds blur by focus or motion, a color cast, uneven lighting and sensor noise."""
    lens = rng.random()
    if lens < 0.35:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.2)))
    elif lens < 0.5:
        image = image.filter(ImageFilter.BoxBlur(pick(rng, ((2, 0), (0, 2)))))
    gains = rng.normal(1, 0.03, 3) * rng.uniform(0.8, 1.12)
    pixels = np.array(image.point(multiplication_table(gains)), dtype=np.float32)
    width, height = image.size
    pixels *= 1 + rng.uniform(0, 0.45) * fractal(rng, width, height, 2, 1)[..., None]
    grain = int(rng.integers(2, 11))
    pixels += rng.integers(-grain, grain + 1, (height, width), dtype=np.int8)[..., None]
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))
