"""Images that have nothing to do with a dataset: those of a folder, or drawn screenshots, shapes and textures.

A drawn image depends on its name alone, so the same name gives the same pixels with the same version of Pillow.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from boxtune.common.errors import UserError
from boxtune.common.files import IMAGE_SUFFIXES, files_below, is_image
from boxtune.data.image_checks import BadImage, check_image
from boxtune.data.images import load_image

GENERATED = "generated"
SIZES = ((640, 480), (480, 640), (512, 512), (640, 400))  # width, height
WORDS = (
    "file", "edit", "view", "insert", "format", "tools", "window", "help", "open", "save", "close", "search", "settings",
    "account", "update", "message", "inbox", "today", "draft", "sent", "folder", "share", "print", "total", "report", "meeting",
    "agenda", "status", "done", "task", "list", "error", "warning", "loading", "profile", "sign", "in",
)  # fmt: skip
COLORS = ("#d62f2f", "#2f6fd6", "#2fa84f", "#e0a020", "#8a3fc0", "#e06a9a", "#20a0a8")

Color = tuple[int, int, int]


@dataclass(frozen=True)
class UnrelatedImage:
    """`size` is (width, height). `path` is empty if the image is drawn."""

    name: str
    size: tuple[int, int]
    path: str
    open: Callable[[], Image.Image]


def unrelated_images(source: str, count: int, seed: str) -> list[UnrelatedImage]:
    """`count` images of a folder, the same ones for the same seed, or drawn ones if `source` is "generated".

    Of a folder with fewer images, all. Raises UserError if the folder does not exist, holds no images or corrupt ones.
    """
    if source == GENERATED:
        return [_drawn(f"{seed}/{number}") for number in range(count)]
    folder = Path(source)
    paths = sorted(filter(is_image, files_below(folder))) if folder.is_dir() else []
    if not paths:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(
            f"{source} is no folder with images ({known}). Name one, or use {GENERATED!r} for drawn images."
        )
    chosen = sorted(random.Random(seed).sample(paths, min(count, len(paths))))
    facts = {path: check_image(path) for path in chosen}
    if bad := [f"{path}: {found.reason}" for path, found in facts.items() if isinstance(found, BadImage)]:
        raise UserError(f"{len(bad)} of {len(chosen)} images of {source} cannot be used; remove them:", bad)
    return [
        UnrelatedImage(path.relative_to(folder).as_posix(), found.upright, str(path.resolve()), _opener(path))
        for path, found in facts.items()
        if not isinstance(found, BadImage)
    ]


def _opener(path: Path) -> Callable[[], Image.Image]:
    return lambda: load_image(path)


def _drawn(name: str) -> UnrelatedImage:
    return UnrelatedImage(name, _size(name), "", lambda: draw_unrelated(name))


def _size(name: str) -> tuple[int, int]:
    return random.Random(f"size {name}").choice(SIZES)


def draw_unrelated(name: str) -> Image.Image:
    """A drawn image, RGB. The number at the end of a name such as "seed/3" decides its kind, so that all kinds occur."""
    rng = random.Random(f"drawn {name}")
    number = name.rpartition("/")[2]
    kind = DRAWERS[int(number) % len(DRAWERS)] if number.isdigit() else rng.choice(DRAWERS)
    return kind(rng, *_size(name))


# ---- screenshots ---------------------------------------------------------------------------------------------------------


def _draw_window(rng: random.Random, width: int, height: int) -> Image.Image:
    """A window of an office program: a title bar, a menu, a list on the left, lines of text and buttons."""
    image = Image.new("RGB", (width, height), _pale(rng))
    draw = ImageDraw.Draw(image)
    accent, size = rng.choice(COLORS), rng.randint(12, 17)
    font = ImageFont.load_default(size)
    draw.rectangle((0, 0, width, 2 * size), fill=accent)
    draw.text((size, size // 2), _words(rng, 3), fill="white", font=font)
    for i in range(3):
        x = width - (i + 1) * 2 * size
        draw.rectangle((x, size // 2, x + size, size // 2 + size), outline="white", width=2)
    x = size
    for word in rng.sample(WORDS, 6):
        draw.text((x, 2.6 * size), word, fill="#303030", font=font)
        x += int(draw.textlength(word, font=font)) + 2 * size
    left = width // rng.randint(3, 5)
    draw.rectangle((0, 4.5 * size, left, height), fill="#e4e6ea")
    for y in range(5 * size, height - 2 * size, 2 * size):
        draw.text((size, y), _words(rng, 1), fill="#303030", font=font)
        if rng.random() < 0.8:
            draw.text((left + 2 * size, y), _words(rng, rng.randint(2, 7)), fill="#404040", font=font)
    for i in range(2):
        x = width - (i + 1) * 7 * size
        draw.rounded_rectangle((x, height - 3 * size, x + 6 * size, height - size), size // 2, fill=accent)
        draw.text((x + size, height - 2.7 * size), rng.choice(WORDS), fill="white", font=font)
    return image


def _draw_terminal(rng: random.Random, width: int, height: int) -> Image.Image:
    """Lines of indented, colored text on a dark background."""
    dark = rng.randint(10, 45)
    image = Image.new("RGB", (width, height), (dark, dark, dark + 10))
    draw = ImageDraw.Draw(image)
    size = rng.randint(11, 16)
    font, indent = ImageFont.load_default(size), 0
    for number, y in enumerate(range(size // 2, height - size, round(1.4 * size))):
        draw.text((4, y), str(number + 1), fill="#707070", font=font)
        indent = max(0, min(5, indent + rng.choice((-1, 0, 0, 1))))
        x = 3 * size + 2 * indent * size
        for _ in range(rng.randint(0, 6)):
            text = rng.choice((*WORDS, "=", "(", ")", "{", "}", "+", "0", "12"))
            draw.text((x, y), text, fill=rng.choice(("#d4d4d4", "#569cd6", "#ce9178", "#6a9955", "#dcdcaa")), font=font)
            x += int(draw.textlength(f"{text} ", font=font)) + 2
    return image


# ---- shapes --------------------------------------------------------------------------------------------------------------


def _draw_shapes(rng: random.Random, width: int, height: int) -> Image.Image:
    """A few large circles, squares and triangles that do not overlap: two rows of three places."""
    image = Image.new("RGB", (width, height), _pale(rng))
    draw = ImageDraw.Draw(image)
    for place in rng.sample(range(6), rng.randint(1, 4)):
        cell_width, cell_height = width / 3, height / 2
        radius = min(cell_width, cell_height) * rng.uniform(0.25, 0.42)
        x, y = (place % 3 + 0.5) * cell_width, (place // 3 + 0.5) * cell_height
        fill, kind = rng.choice(COLORS), rng.choice(("circle", "square", "triangle"))
        if kind == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        elif kind == "square":
            draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            draw.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=fill)
    return image


# ---- textures ------------------------------------------------------------------------------------------------------------


def _draw_texture(rng: random.Random, width: int, height: int) -> Image.Image:
    """Smooth noise between two colors, as clouds, stone or cloth."""
    noise = np.random.default_rng(rng.getrandbits(32))
    level = np.zeros((height, width), dtype=np.float32)
    cells, stretch = rng.randint(3, 12), rng.choice((1, 1, 8))
    for octave in range(4):
        rows = cells * 2**octave
        values = noise.random((rows, max(2, rows // stretch)), dtype=np.float32)
        grown = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
        level += np.asarray(grown) / 2**octave
    level = (level - level.min()) / (level.max() - level.min())
    low, high = np.array(_color(rng)), np.array(_color(rng))
    return Image.fromarray((low + level[..., None] * (high - low)).round().astype(np.uint8))


def _draw_stripes(rng: random.Random, width: int, height: int) -> Image.Image:
    """Slanted stripes or checks of two colors."""
    x, y = np.arange(width), np.arange(height)[:, None]
    step, slant = rng.randint(12, 60), rng.uniform(-1, 1)
    across = np.floor((x + slant * y) / step)
    marks = across + np.floor((y - slant * x) / step) if rng.random() < 0.5 else across + 0 * y
    colors = np.array([_color(rng), _color(rng)], dtype=np.uint8)
    return Image.fromarray(colors[(marks % 2).astype(int)])


DRAWERS = (_draw_window, _draw_texture, _draw_shapes, _draw_terminal, _draw_stripes)


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def _color(rng: random.Random) -> Color:
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def _pale(rng: random.Random) -> Color:
    return rng.randint(225, 255), rng.randint(225, 255), rng.randint(225, 255)
