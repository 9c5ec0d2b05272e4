"""Colors and noise for drawing packages and backgrounds."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

RGB = tuple[int, int, int]


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """The RGB color, 0 to 255, of a hue (any number, taken modulo 1), saturation and value (0 to 1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def is_dark(color: Sequence[int]) -> bool:
    """Whether white text is legible on a color, by its luma (the rounded weights of ITU-R BT.601)."""
    return bool(np.dot(color[:3], (0.3, 0.59, 0.11)) < 135)


def fractal(
    rng: np.random.Generator, width: int, height: int, cells: int, octaves: int = 3, stretch: float = 1
) -> np.ndarray:
    """(height, width) smooth noise of about −0.5 to 0.5, with `cells` cells along each side; `stretch` widens the cells."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        noise = rng.random((n, max(int(n / stretch), 2)), dtype=np.float32) - 0.5
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return total / 1.5


def multiplication_table(gains: Sequence[float] | np.ndarray) -> list[int]:
    """The lookup table for `Image.point` that multiplies each channel by its gain."""
    table: list[int] = np.outer(gains, np.arange(256)).clip(0, 255).astype(int).ravel().tolist()
    return table
