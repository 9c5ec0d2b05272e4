"""The objects and backgrounds of the pretraining images. Words consist of random syllables.

Objects are drawn shapes and parts of documents, and emoji, which have texture, many colors and names of their own. To draw
them, Noto Color Emoji must be installed (Debian: fonts-noto-color-emoji; SIL Open Font License, Apache License 2.0). It is not
part of this repository.
"""

import functools
import math
import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from boxtune.common.errors import UserError

DRAWN = (
    "circle", "square", "triangle", "star", "cross", "ring", "cell", "balloon", "box", "label", "barcode", "title",
    "text", "figure", "table",
)  # fmt: skip
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_SIZE = 109  # the only size of its bitmaps
# By the name that Unicode gives them.
EMOJI = {
    name: unicodedata.lookup(name)
    for name in (
        "fish", "tropical fish", "turtle", "penguin", "dolphin", "octopus", "snail", "bird", "rooster", "dog", "cat", "rabbit",
        "horse", "cow", "elephant", "bug", "tulip", "sunflower", "mushroom", "palm tree", "banana", "grapes", "strawberry",
        "pineapple", "tomato", "hamburger", "doughnut", "bread", "cookie", "candy", "wine glass", "crown", "t-shirt", "handbag",
        "rocket", "helicopter", "bus", "automobile", "tractor", "ship", "guitar", "trumpet",
    )
}  # fmt: skip
CLASSES = (*DRAWN, *EMOJI)
SHAPES = DRAWN[: DRAWN.index("label")]
DOCUMENT_PARTS = DRAWN[DRAWN.index("label") :]
ROUND = {"circle", "ring", "cell"}
WITH_WORDS = {"title", "text", "table", "label"}
SYLLABLES = ("ka", "lo", "mi", "ne", "ru", "sta", "ver", "on", "tis", "pra", "gel", "dor", "qui", "bum", "wex", "ha")


@functools.lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@functools.cache
def glyph(name: str) -> Image.Image:
    """The emoji as a tile (RGBA), cut to its ink. Raises UserError if the font is not installed."""
    if not EMOJI_FONT.exists():
        raise UserError(
            f"{EMOJI_FONT} is missing. Install Noto Color Emoji (Debian: apt-get install fonts-noto-color-emoji)."
        )
    tile = Image.new("RGBA", (2 * EMOJI_SIZE, 2 * EMOJI_SIZE))
    glyphs = ImageFont.truetype(EMOJI_FONT, EMOJI_SIZE)
    ImageDraw.Draw(tile).text((EMOJI_SIZE // 4, EMOJI_SIZE // 4), EMOJI[name], font=glyphs, embedded_color=True)
    return tile.crop(tile.getbbox(alpha_only=True))


def word(rng: random.Random) -> str:
    made = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))
    return made.capitalize() if rng.random() < 0.3 else made


def number(rng: random.Random) -> str:
    return f"{rng.uniform(0, 99):.{rng.randint(0, 1)}f}{rng.choice(['', '', ' m', ' %', ' kg'])}"


def color(rng: random.Random, low: int = 0, high: int = 255) -> tuple[int, int, int]:
    return tuple(rng.randint(low, high) for _ in range(3))


def ink_on(rng: random.Random, background: tuple[int, int, int]) -> tuple[int, int, int]:
    """A color with enough contrast to `background`."""
    while True:
        made = color(rng)
        if sum(abs(a - b) for a, b in zip(made, background, strict=True)) > 220:
            return made


def strong_ink(rng: random.Random, background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Nearly black on a light background, nearly white on a dark one, as in print."""
    return color(rng, 0, 70) if sum(background) > 380 else color(rng, 200, 255)


# ---- backgrounds ------------------------------------------------------------------------------------------------------


def draw_background(rng: random.Random, width: int, height: int) -> tuple[Image.Image, tuple[int, int, int]]:
    """(image, its main color): plain, a gradient, noise or stripes, sometimes with an empty card on it."""
    main = color(rng, 150, 255) if rng.random() < 0.6 else color(rng)
    kind = rng.choice(["plain", "gradient", "noise", "stripes"])
    if kind == "gradient":
        other = tuple(min(max(v + rng.randint(-60, 60), 0), 255) for v in main)
        corners = np.array([[main, other], [other, main]] if rng.random() < 0.3 else [[main, main], [other, other]])
        if rng.random() < 0.5:
            corners = corners.transpose(1, 0, 2)
        image = Image.fromarray(corners.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    elif kind == "noise":
        grain = np.random.default_rng(rng.getrandbits(32))
        cells = rng.choice([4, 12, 40, 100])
        speckle = grain.normal(0, rng.uniform(4, 22), (cells, cells, 1)) + np.array(main)
        tile = Image.fromarray(speckle.clip(0, 255).astype(np.uint8))
        image = tile.resize((width, height), Image.Resampling.BILINEAR)
    else:
        image = Image.new("RGB", (width, height), main)
        if kind == "stripes":
            draw, step = ImageDraw.Draw(image), rng.randint(8, 40)
            other = tuple(min(max(v + rng.randint(-45, 45), 0), 255) for v in main)
            for i in range(0, max(width, height), 2 * step):
                draw.rectangle((i, 0, i + step, height) if width > height else (0, i, width, i + step), fill=other)
    if rng.random() < 0.25:
        draw = ImageDraw.Draw(image)
        x, y = rng.randint(0, width // 2), rng.randint(0, height // 2)
        shade = tuple(min(max(v + rng.randint(-40, 40), 0), 255) for v in main)
        draw.rectangle((x, y, x + rng.randint(width // 3, width), y + rng.randint(height // 3, height)), fill=shade)
    return image, main


# ---- objects: each fills the box (0, 0, width, height) of a transparent tile ------------------------------------------


def draw_polygon(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: int, height: int, fill) -> None:
    draw.polygon([(x * (width - 1), y * (height - 1)) for x, y in points], fill=fill)


def draw_shape(draw: ImageDraw.ImageDraw, name: str, w: int, h: int, rng: random.Random, ink) -> None:
    edge = (0, 0, w - 1, h - 1)
    line = max(2, round(min(w, h) * rng.uniform(0.1, 0.2)))
    if name == "circle":
        draw.ellipse(edge, fill=ink)
    elif name == "ring":
        draw.ellipse(edge, outline=ink, width=line)
    elif name == "cell":
        draw.ellipse(edge, fill=tuple(v + (255 - v) // 2 for v in ink), outline=ink, width=max(1, line // 3))
        draw.ellipse((w * 0.3, h * 0.3, w * 0.65, h * 0.65), fill=tuple(v // 2 for v in ink))
    elif name == "square":
        draw.rectangle(edge, fill=ink)
    elif name == "triangle":
        draw_polygon(draw, [(0.5, 0), (1, 1), (0, 1)], w, h, ink)
    elif name == "cross":
        draw.rectangle((w * 0.36, 0, w * 0.64, h - 1), fill=ink)
        draw.rectangle((0, h * 0.36, w - 1, h * 0.64), fill=ink)
    elif name == "star":
        turns = [(math.sin(i * math.pi / 5), -math.cos(i * math.pi / 5), (1, 0.42)[i % 2]) for i in range(10)]
        points = [(0.5 + 0.526 * x * r, 0.553 + 0.553 * y * r) for x, y, r in turns]
        draw_polygon(draw, points, w, h, ink)
    elif name == "balloon":
        draw.ellipse((0, 0, w - 1, h * 0.72), fill=ink)
        draw_polygon(draw, [(0.5, 0.68), (0.6, 0.78), (0.4, 0.78)], w, h, ink)
        draw.line((w / 2, h * 0.75, w / 2, h - 1), fill=ink, width=max(1, line // 4))
    elif name == "box":
        dark, light = tuple(v * 2 // 3 for v in ink), tuple(v + (255 - v) // 3 for v in ink)
        draw_polygon(draw, [(0, 0.25), (0.7, 0.25), (0.7, 1), (0, 1)], w, h, ink)
        draw_polygon(draw, [(0, 0.25), (0.3, 0), (1, 0), (0.7, 0.25)], w, h, light)
        draw_polygon(draw, [(0.7, 0.25), (1, 0), (1, 0.75), (0.7, 1)], w, h, dark)


def draw_barcode(draw: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    draw.rectangle((0, 0, w - 1, h - 1), fill=color(rng, 235, 255))
    x, step = 0.06 * w, max(1.0, w / rng.randint(35, 60))
    while x < 0.93 * w:
        bar = step * rng.randint(1, 3)
        draw.rectangle((x, h * 0.08, x + max(bar - 1, 0), h * 0.9), fill=(0, 0, 0))
        x += bar + step * rng.randint(1, 3)


def draw_figure(draw: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random) -> None:
    """A small chart with a frame: bars or a line."""
    background = color(rng, 225, 255)
    draw.rectangle((0, 0, w - 1, h - 1), fill=background, outline=strong_ink(rng, background))
    draw.line((w * 0.12, h * 0.08, w * 0.12, h * 0.88, w * 0.94, h * 0.88), fill=(20, 20, 20), width=max(1, w // 60))
    count, ink = rng.randint(3, 7), color(rng, 0, 190)
    levels = [rng.uniform(0.15, 0.75) for _ in range(count)]
    slots = [w * (0.16 + 0.76 * i / count) for i in range(count + 1)]
    if rng.random() < 0.5:
        for left, right, level in zip(slots[:-1], slots[1:], levels, strict=True):
            draw.rectangle((left, h * (0.87 - level), left + (right - left) * 0.7, h * 0.87), fill=ink)
    else:
        points = [(x, h * (0.87 - level)) for x, level in zip(slots[:-1], levels, strict=True)]
        draw.line(points, fill=ink, width=max(2, w // 40))


def draw_words(draw: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random, ink, line: float) -> None:
    """Fill the tile with lines of words, each `line` pixels high."""
    rows = max(1, round(h / line))
    size = max(5, round(h / rows * 0.85))
    for row in range(rows):
        full = w if row < rows - 1 or rows == 1 else w * rng.uniform(0.5, 1)
        words, length = [], 0.0
        while length < full:
            words.append(word(rng))
            length += font(size).getlength(words[-1] + " ")
        draw.text((0, row * h / rows - size * 0.12), " ".join(words), fill=ink, font=font(size))


def draw_label(draw: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random, background) -> None:
    """A rounded tag with one big word."""
    tag = ink_on(rng, background)
    draw.rounded_rectangle((0, 0, w - 1, h - 1), radius=min(w, h) // 4, fill=tag)
    size = max(6, round(h * rng.uniform(0.4, 0.55)))
    text, ink = word(rng)[: max(2, round(1.4 * w / size))], strong_ink(rng, tag)
    draw.text((w / 2, h / 2), text, fill=ink, font=font(size), anchor="mm")


def draw_table(draw: ImageDraw.ImageDraw, w: int, h: int, rng: random.Random, around) -> None:
    """Rows with a name and one to three numbers: ruled, zebra-striped or plain, usually with a frame."""
    rows, columns = max(3, min(rng.randint(3, 10), h // 7)), rng.randint(1, 3) + 1
    background = (255, 255, 255) if rng.random() < 0.5 else (color(rng, 190, 255) if rng.random() < 0.7 else around)
    if rng.random() < 0.12:
        background = color(rng, 0, 80)
    ink, line = strong_ink(rng, background), max(1, round(min(w, h) / 90))
    draw.rectangle((0, 0, w - 1, h - 1), fill=background)
    shade = tuple((4 * g + i) // 5 for g, i in zip(background, ink, strict=True))
    style = rng.choice(["rules", "grid", "zebra", "bare"])
    head = rng.random() < 0.5
    first = w * (rng.uniform(0.4, 0.6) if columns < 4 else 0.34)
    edges = [0, *(first + (w - first) * i / (columns - 1) for i in range(columns))]
    for row in range(rows):
        top, bottom = h * row / rows, h * (row + 1) / rows
        is_head = head and row == 0
        if is_head and rng.random() < 0.5:
            draw.rectangle((0, top, w - 1, bottom), fill=ink)
        elif style == "zebra" and row % 2:
            draw.rectangle((0, top, w - 1, bottom), fill=shade)
        if style in {"rules", "grid"} and row:
            draw.line((0, top, w - 1, top), fill=ink, width=line)
        size = max(5, round(min((bottom - top) * 0.7, (edges[-1] - edges[-2]) / 3)))
        name = f"{word(rng)} {word(rng)}"[: max(3, round(1.6 * first / size))]
        draw.text((w * 0.03, (top + bottom) / 2), name, fill=ink, font=font(size), anchor="lm")
        for right in edges[2:]:
            draw.text((right - w * 0.03, (top + bottom) / 2), number(rng), fill=ink, font=font(size), anchor="rm")
    if style == "grid":
        for x in edges[1:-1]:
            draw.line((x, 0, x, h - 1), fill=ink, width=line)
    if style == "grid" or rng.random() < 0.6 or background == around:
        draw.rectangle((0, 0, w - 1, h - 1), outline=ink, width=line)


def draw_object(name: str, width: int, height: int, rng: random.Random, background, ink=None) -> Image.Image:
    """A tile (RGBA) with one object. `ink` sets the color of a shape; by default it is random."""
    if name in EMOJI:
        tile = glyph(name).resize((width, height), Image.Resampling.BILINEAR)
        return tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else tile
    tile = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(tile)
    if name == "table":
        draw_table(draw, width, height, rng, background)
    elif name == "label":
        draw_label(draw, width, height, rng, background)
    elif name == "text":
        draw_words(draw, width, height, rng, strong_ink(rng, background), line=rng.uniform(7, 13))
    elif name == "title":
        draw_words(draw, width, height, rng, strong_ink(rng, background), line=height)
    elif name == "figure":
        draw_figure(draw, width, height, rng)
    elif name == "barcode":
        draw_barcode(draw, width, height, rng)
    else:
        draw_shape(draw, name, width, height, rng, ink or ink_on(rng, background))
    return tile


def object_size(name: str, rng: random.Random, long_side: float) -> tuple[int, int]:
    """(width, height) with the given long side and an aspect ratio that suits the class."""
    if name in EMOJI:
        drawn = glyph(name)
        aspect = drawn.width / drawn.height * rng.uniform(0.85, 1.18)
    elif name in ROUND or name in {"square", "star", "cross"}:
        aspect = rng.uniform(0.9, 1.1)
    elif name == "title":
        aspect = rng.uniform(3.5, 6)
    elif name == "label":
        aspect = rng.uniform(1.8, 3)
    elif name == "barcode":
        aspect = rng.uniform(1.3, 2.2)
    elif name == "balloon":
        aspect = rng.uniform(0.55, 0.7)
    else:
        aspect = math.exp(rng.uniform(-0.6, 0.6))
    width, height = (long_side, long_side / aspect) if aspect > 1 else (long_side * aspect, long_side)
    return max(8, round(width)), max(8, round(height))


def turn(tile: Image.Image, angle: float) -> Image.Image:
    """The tile rotated by `angle` degrees and enlarged to contain the whole object."""
    return tile.rotate(angle, expand=True, resample=Image.Resampling.BILINEAR)
