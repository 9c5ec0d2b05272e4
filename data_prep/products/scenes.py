"""Photographs of food packages that never existed: a background, one to three packages, light and lens.

`draw_image(seed, index)` depends on nothing but its arguments.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.products.packages import MARGIN, Package, fractal, hsv, make_package, signed_area
from data_prep.products.words import pick

ASPECTS = (3 / 4, 4 / 3, 1, 2 / 3, 3 / 2, 9 / 16, 16 / 9)
TABLES, TABLES_SHARE = (0, 1, 2, 3), (0.12, 0.56, 0.22, 0.10)
PACKAGES = ((1, 2), (1, 1, 1, 2), (1, 2), (2, 3))  # how many there may be for each number of tables
SMALLEST_TABLE = 0.09  # least side of a table's box, as a share of the picture's shorter side
VISIBLE = 0.75  # least share of a table's box, and of a package's, that lies inside the picture


class Picture(NamedTuple):
    image: Image.Image
    boxes_xyxy: list[list[float]]  # of the nutrition tables
    jpeg_quality: int


def draw_image(seed: int, index: int, size: int = 448) -> Picture:
    """Picture `index` of a seed; its long side is 0.7 to 1.4 times `size`."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    long_side, aspect = size * rng.uniform(0.7, 1.4), pick(rng, ASPECTS)
    width, height = round(long_side * min(aspect, 1)), round(long_side / max(aspect, 1))
    packages = compose(rng, width, height, int(rng.choice(TABLES, p=TABLES_SHARE)))
    outlines = [package.outline(table) for package in packages for table in package.tables]
    boxes = [bound(visible_part(outline, width, height)) for outline in outlines]
    image = photograph(rng, packages, width, height)
    return Picture(image, boxes, int(rng.integers(55, 96)))


def photograph(rng, packages: list[Package], width: int, height: int) -> Image.Image:
    """The packages, back to front, on a ground, through a lens."""
    return _expose(rng, _paint(rng, packages, width, height))


def visible_part(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """(M, 2) corners of the part of a polygon that lies inside the picture; none where it lies outside."""
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
    """[x0, y0, x1, y1] of (N, 2) points, to a tenth of a pixel."""
    return np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]).round(1).tolist()


def compose(rng, width: int, height: int, tables: int) -> list[Package]:
    """Packages from back to front; every nutrition table is large enough, inside the picture and not hidden."""
    count = pick(rng, PACKAGES[tables])
    shares = [tables // count + (i < tables % count) for i in range(count)]
    while True:
        slots = _slots(rng, width, height, count)
        drawn = [_fitting(rng, slot, n, count == 1) for slot, n in zip(slots, rng.permutation(shares), strict=True)]
        for _ in range(10):  # moving a package costs nothing, drawing it does
            packages = [p.moved(_spot(rng, slot, count == 1)) for p, slot in zip(drawn, slots, strict=True)]
            if all(_well_placed(packages, i, width, height) for i in range(count)):
                return packages


def _slots(rng, width: int, height: int, count: int) -> list[tuple[float, float, float, float]]:
    """Strips (xyxy) side by side along the longer side, of uneven breadth."""
    cuts = np.cumsum([0, *rng.dirichlet([12] * count)])
    if width * rng.uniform(0.8, 1.25) > height:
        return [(width * a, 0, width * b, height) for a, b in pairwise(cuts)]
    return [(0, height * a, width, height * b) for a, b in pairwise(cuts)]


def _fitting(rng, slot, tables: int, alone: bool) -> Package:
    """A package of a size to fit a slot; one that is alone may come so close that it overflows it."""
    x0, y0, x1, y1 = slot
    roll = rng.normal(0, 0.09)
    aspect = math.exp(rng.uniform(-0.75, 0.55))
    across, down = aspect, 1.0
    if rng.random() < 0.2:
        roll, across, down = roll + pick(rng, (math.pi / 2, -math.pi / 2)), down, across
    zoom = rng.uniform(0.75, 1) if not alone else rng.uniform(0.7, 2 if tables else 1.2)
    height = zoom * min((x1 - x0) / across, (y1 - y0) / down)
    return make_package(rng, round(height * aspect) + 2 * MARGIN, round(height) + 2 * MARGIN, roll, int(tables))


def _spot(rng, slot, alone: bool) -> tuple[float, float]:
    """Where the middle of a package comes to lie."""
    x0, y0, x1, y1 = slot
    reach = 0.5 if alone else 0.06
    x, y = rng.uniform(0.5 - reach, 0.5 + reach, 2)
    return x0 + (x1 - x0) * x, y0 + (y1 - y0) * y


def _well_placed(packages: list[Package], i: int, width: int, height: int) -> bool:
    *_, (front, _) = packages[i].polygons()
    seen = signed_area(visible_part(front, width, height))
    if seen < min(VISIBLE * signed_area(front), 0.3 * width * height):
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


def _paint(rng, packages: list[Package], width: int, height: int) -> Image.Image:
    image = _background(rng, width, height)
    for package in packages:
        polygons = package.polygons()
        shade, offset = Image.new("L", (width // 4 + 1, height // 4 + 1)), rng.uniform(0, 2, 2)
        for corners, _ in polygons:
            ImageDraw.Draw(shade).polygon((corners / 4 + offset).ravel().tolist(), fill=150)
        shade = shade.filter(ImageFilter.GaussianBlur(2)).resize((width, height), Image.Resampling.BILINEAR)
        image.paste((15, 12, 10), (0, 0), shade)
        for corners, brightness in polygons[:-1]:
            fill = tuple(min(round(c * brightness), 255) for c in package.colour)
            draw = ImageDraw.Draw(image)
            draw.polygon(corners.ravel().tolist(), fill=fill)
            draw.line(corners[:2].ravel().tolist(), fill=fill, width=3)  # under the soft edge of the front
        part, corner = package.warp(package.face, (width, height))
        image.paste(part, corner, part)
    return image


def _background(rng, width: int, height: int) -> Image.Image:
    kind = pick(rng, ("studio", "wood", "stone", "shelf", "cloth", "tiles"))
    if kind == "shelf":
        return _shelf(rng, width, height)
    colour = hsv(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.45, 0.95))
    x = np.arange(width, dtype=np.float32) / max(width, height)
    y = np.arange(height, dtype=np.float32)[:, None] / max(width, height)
    count = int(rng.integers(4, 10))
    if kind == "studio":
        level = 0.85 + 0.3 * (rng.uniform(-1, 1) * (x - 0.5) + rng.uniform(0, 1) * (y - 0.5))
    elif kind == "wood":
        colour = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.65), rng.uniform(0.4, 0.85))
        plank = y * count
        level = (
            0.95 + 0.35 * fractal(rng, width, height, 40, 2, stretch=14) + 0.12 * (np.floor(plank) * 0.618 % 1 - 0.5)
        )
        level = np.where(plank % 1 < 0.04, 0.55, level)
    elif kind == "stone":
        noise = fractal(rng, width, height, 4, 4)
        level = 0.92 + 0.2 * noise - rng.uniform(0, 0.25) * np.exp(-((noise / 0.02) ** 2))
    elif kind == "cloth":
        checks = (x * count % 1 < 0.5).astype(np.float32) + (y * count % 1 < 0.5)
        level = 1 - 0.16 * checks + 0.1 * fractal(rng, width, height, 60, 1)
    else:
        seams = (x * count % 1 < 0.03) | (y * count % 1 < 0.03)
        level = np.where(seams, 0.7, 0.95 + 0.1 * fractal(rng, width, height, 3))
    grey = Image.fromarray((255 / 1.3 * level).clip(0, 255).astype(np.uint8))
    return Image.merge("RGB", [grey] * 3).point(_tone(1.3 / 255 * np.array(colour)))


def _shelf(rng, width: int, height: int) -> Image.Image:
    """Other products on shop shelves, out of focus."""
    small = Image.new("RGB", (width // 3, height // 3), hsv(0.1, 0.1, rng.uniform(0.2, 0.5)))
    draw, rows = ImageDraw.Draw(small), int(rng.integers(2, 5))
    step = small.height / rows
    for row in range(rows):
        floor, x = (row + 0.93) * step, 0.0
        while x < small.width:
            w, h, hue = step * rng.uniform(0.2, 0.6), step * rng.uniform(0.5, 0.85), rng.random()
            draw.rectangle((x, floor - h, x + w, floor), fill=hsv(hue, rng.uniform(0.1, 0.8), rng.uniform(0.3, 0.95)))
            draw.rectangle((x + w * 0.2, floor - h * 0.8, x + w * 0.8, floor - h * 0.5), fill=hsv(hue + 0.4, 0.3, 0.9))
            x += w * 1.05
        draw.rectangle((0, floor, small.width, floor + small.height * 0.03), fill=(215, 212, 205))
    return small.filter(ImageFilter.GaussianBlur(rng.uniform(1, 3))).resize((width, height), Image.Resampling.BICUBIC)


def _expose(rng, image: Image.Image) -> Image.Image:
    """Focus, motion, uneven light, colour cast and sensor noise."""
    lens = rng.random()
    if lens < 0.35:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.2)))
    elif lens < 0.5:
        image = image.filter(ImageFilter.BoxBlur(pick(rng, ((2, 0), (0, 2)))))
    gains = rng.normal(1, 0.03, 3) * rng.uniform(0.8, 1.12)
    pixels = np.array(image.point(_tone(gains)), dtype=np.float32)
    width, height = image.size
    pixels *= 1 + rng.uniform(0, 0.45) * fractal(rng, width, height, 2, 1)[..., None]
    grain = int(rng.integers(2, 11))
    pixels += rng.integers(-grain, grain + 1, (height, width), dtype=np.int8)[..., None]
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))


def _tone(gains) -> list[int]:
    """A table for `Image.point` that multiplies each channel."""
    return np.outer(gains, np.arange(256)).clip(0, 255).astype(int).ravel().tolist()
