"""Backgrounds of product photographs: a studio, wood, stone, cloth, tiles or shop shelves."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.products.textures import fractal, hsv, multiplication_table
from data_prep.products.words import pick


def draw_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A background of a random kind, in pixels of `width` × `height`."""
    kind = pick(rng, ("studio", "wood", "stone", "shelf", "cloth", "tiles"))
    if kind == "shelf":
        return _shelf(rng, width, height)
    color = hsv(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.45, 0.95))
    x = np.arange(width, dtype=np.float32) / max(width, height)
    y = np.arange(height, dtype=np.float32)[:, None] / max(width, height)
    count = int(rng.integers(4, 10))
    if kind == "studio":
        level = 0.85 + 0.3 * (rng.uniform(-1, 1) * (x - 0.5) + rng.uniform(0, 1) * (y - 0.5))
    elif kind == "wood":
        color = hsv(rng.uniform(0.04, 0.1), rng.uniform(0.3, 0.65), rng.uniform(0.4, 0.85))
        plank = y * count
        grain = fractal(rng, width, height, 40, 2, stretch=14)
        level = 0.95 + 0.35 * grain + 0.12 * (np.floor(plank) * 0.618 % 1 - 0.5)
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
    gray = Image.fromarray((255 / 1.3 * level).clip(0, 255).astype(np.uint8))
    return Image.merge("RGB", [gray] * 3).point(multiplication_table(1.3 / 255 * np.array(color)))


def _shelf(rng: np.random.Generator, width: int, height: int) -> Image.Image:
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
