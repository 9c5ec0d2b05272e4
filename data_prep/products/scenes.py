"""Photographs of invented food packages: a background, one to three packages, lighting and lens.

`draw_image(seed, index)` depends only on its arguments. Most images are close views of a label, the others show whole
packages (data_prep.products.placing).
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.products.backgrounds import draw_background
from data_prep.products.geometry import bound, visible_part
from data_prep.products.packages import Package
from data_prep.products.placing import compose, random_view
from data_prep.products.textures import fractal, multiplication_table
from data_prep.products.words import pick

ASPECTS = (3 / 4, 4 / 3, 1, 2 / 3, 3 / 2, 9 / 16, 16 / 9)
TABLES, TABLES_SHARE = (0, 1, 2, 3), (0.12, 0.56, 0.22, 0.10)


class DrawnImage(NamedTuple):
    image: Image.Image
    boxes_xyxy: list[list[float]]  # of the nutrition tables, in pixels
    view: str  # "close" or "distant"
    jpeg_quality: int


def draw_image(seed: int, index: int, size: int = 448) -> DrawnImage:
    """Image `index` of a seed. Its longer side is 0.7 to 1.4 times `size`, in pixels."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    long_side, aspect = size * rng.uniform(0.7, 1.4), pick(rng, ASPECTS)
    width, height = round(long_side * min(aspect, 1)), round(long_side / max(aspect, 1))
    view, tables = random_view(rng), int(rng.choice(TABLES, p=TABLES_SHARE))
    packages = compose(rng, width, height, tables, view)
    outlines = [package.outline(table) for package in packages for table in package.tables]
    boxes = [bound(visible_part(outline, width, height)) for outline in outlines]
    image = photograph(rng, packages, width, height)
    return DrawnImage(image, boxes, view, int(rng.integers(55, 96)))


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
