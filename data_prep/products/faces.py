"""The printed face of a food package, flat: its colors, brand, panels and material."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep.products.labels import DISTRACTORS, Style, distractor, nutrition_table, print_line
from data_prep.products.textures import RGB, fractal, hsv, is_dark
from data_prep.products.words import BRANDS, GOODS, LANGUAGES, pick

KINDS = ("carton", "carton", "card", "pouch", "jar")
MARGIN = 2  # transparent pixels around a face, which give it smooth edges

Rectangle = tuple[float, float, float, float]  # xyxy
Panel = tuple[str, Rectangle]  # "nutrition" or one of DISTRACTORS, and its box in pixels of the flat face


class Face(NamedTuple):
    image: Image.Image  # RGBA, flat
    panels: list[Panel]
    color: RGB  # of the package


def _palette(rng: np.random.Generator) -> tuple[RGB, Style]:
    """(color of the package, style of its print)."""
    hue = rng.random()
    bases = (
        hsv(hue, rng.uniform(0, 0.12), rng.uniform(0.88, 1)),  # white
        hsv(rng.uniform(0.06, 0.11), rng.uniform(0.25, 0.45), rng.uniform(0.65, 0.85)),  # plain cardboard
        hsv(hue, rng.uniform(0.4, 0.85), rng.uniform(0.25, 0.95)),
        hsv(hue, rng.uniform(0.2, 0.6), rng.uniform(0.75, 1)),
    )
    base = pick(rng, bases)
    paper = pick(rng, ((255, 255, 255, 255), (*hsv(hue, 0.08, 0.97), 255), (*base, 0), (*base, 0)))
    dark_ink = hsv(hue, rng.uniform(0, 0.9), rng.uniform(0.05, 0.25))
    bare_ink = (250, 250, 245) if is_dark(base) else dark_ink
    style = Style(
        ink=dark_ink if paper[3] else bare_ink,
        bare_ink=bare_ink,
        paper=paper,
        accent=hsv(hue + rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.7)),
        border=int(rng.integers(0, 3)),
        rules=pick(rng, ("rows", "rows", "both", "")),
        zebra=rng.random() < 0.3,
        header=rng.random() < 0.3,
        leading=rng.uniform(1.3, 1.9),
        narrow=pick(rng, (1, 1, 0.85, 0.75)),
    )
    return base, style


def draw_face(
    rng: np.random.Generator, kind: str, width: int, height: int, tables: int, column: float | None = None
) -> Face:
    """The flat print of a package of one of KINDS, with this many nutrition tables. `column` is the approximate width of the
    columns of print; without it, there are one or two."""
    base, style = _palette(rng)
    image = Image.new("RGBA", (width, height), base)
    draw, top, bottom = ImageDraw.Draw(image), 0, height
    if rng.random() < 0.25:
        tint = tuple(min(255, c + 14) for c in base)
        for x in range(0, width, step := int(rng.integers(10, 40))):
            draw.rectangle((x, 0, x + step // 2, height), fill=tint)
    if kind == "jar":
        top = int(height * 0.1)
        lid = pick(rng, ((190, 190, 195), (230, 228, 220), style.accent, (60, 60, 64)))
        draw.rectangle((0, 0, width, top), fill=lid)
    if rng.random() < 0.6:
        band = int(height * rng.uniform(0.08, 0.2))
        at_top = rng.random() < 0.7
        _print_brand(rng, image, (top if at_top else bottom - band, band), base, style)
        top, bottom = (top + band, bottom) if at_top else (top, bottom - band)
    panels: list[Panel] = []
    if not tables and rng.random() < 0.5:
        _print_content(rng, image, (top, bottom), base, style)
    else:
        panels = _print_panels(rng, image, (top, bottom), style, tables, column)
    return Face(_shade(rng, image, kind), panels, base)


def _print_brand(rng: np.random.Generator, face: Image.Image, band: tuple[int, int], base: RGB, style: Style) -> None:
    """Prints a brand name, usually on a colored band; `band` is its (top, height)."""
    top, height = band
    name, ground = pick(rng, BRANDS), pick(rng, (style.accent, style.accent, base))
    ImageDraw.Draw(face).rectangle((0, top, face.width, top + height), fill=ground)
    size = max(int(min(height * 0.6, face.width * 1.3 / len(name))), 6)
    x = (face.width - 0.6 * size * len(name)) * rng.uniform(0.15, 0.85)
    color = "white" if is_dark(ground) else (30, 30, 30)
    print_line(face, (x, top + (height - 1.2 * size) / 2), name, size, style, bold=True, color=color)


def _print_content(rng: np.random.Generator, face: Image.Image, rows: tuple[int, int], base: RGB, style: Style) -> None:
    """Prints the name of the product and a bowl with it, as on the front of a package; `rows` is (top, bottom)."""
    top, bottom = rows
    draw, hue, size = ImageDraw.Draw(face), rng.uniform(-0.05, 0.32), max(face.width // 9, 7)
    color = "white" if is_dark(base) else style.accent
    print_line(face, (face.width * 0.08, top + size * 0.3), pick(rng, GOODS), size, style, bold=True, color=color)
    top += 2 * size
    side, x, y = 0.9 * min(face.width, bottom - top), face.width / 2, (top + bottom) / 2
    for radius, color in ((0.5, (250, 248, 240)), (0.46, (222, 216, 204)), (0.41, hsv(hue, 0.6, 0.6))):
        draw.circle((x, y), max(side * radius, 1), fill=color)
    for _ in range(60):
        angle, r = rng.uniform(0, 2 * math.pi), 0.35 * math.sqrt(rng.random()) * side
        color = hsv(hue + rng.uniform(-0.06, 0.06), rng.uniform(0.4, 0.8), rng.uniform(0.5, 0.95))
        piece = max(side * rng.uniform(0.03, 0.06), 1)
        draw.circle((x + r * math.cos(angle), y + r * math.sin(angle)), piece, fill=color)


# ---- panels ----------------------------------------------------------------------------------------------------------


@dataclass
class _Column:
    """A column of panels; lengths in pixels. `free` is the height that is left."""

    left: int
    width: int
    free: int
    panels: list[tuple[str, Image.Image]] = field(default_factory=list)


def _print_panels(
    rng: np.random.Generator, face: Image.Image, rows: tuple[int, int], style: Style, tables: int, column: float | None
) -> list[Panel]:
    """Prints nutrition tables and other panels in columns; `rows` is (top, bottom)."""
    top, bottom = rows
    gap = max(face.width // 30, 4)
    columns = _columns(rng, face.width, bottom - top, gap, column)
    first = int(rng.integers(len(columns)))
    for i in range(tables + 2 * max(len(columns), 2)):
        place, is_table = columns[(first + i) % len(columns)], i < tables
        if not is_table and place.free < 30:
            continue
        kind, panel = _draw_panel(rng, place, style, is_table)
        room = place.free / (2 if tables > len(columns) and i == 0 else 1)
        if panel.height > room and not is_table:
            continue
        panel.thumbnail((place.width, max(room, 8)), Image.Resampling.LANCZOS)
        place.panels.append((kind, panel))
        place.free -= panel.height + gap
    return [panel for place in columns for panel in _paste_column(rng, face, place, top, gap)]


def _columns(rng: np.random.Generator, width: int, height: int, gap: int, column: float | None) -> list[_Column]:
    """Columns of about a width; without one, a single column, or two on a wide face."""
    count = round(width / column) if column else 1 + int(width > 1.2 * height or rng.random() < 0.15)
    inner = (np.arange(1, count) + rng.uniform(-0.2, 0.2, count - 1)) / count
    cuts = [gap, *(width * inner).round().astype(int).tolist(), width]
    return [_Column(left, right - left - gap, height - 2 * gap) for left, right in pairwise(cuts)]


def _draw_panel(rng: np.random.Generator, column: _Column, style: Style, is_table: bool) -> tuple[str, Image.Image]:
    """(kind, image) of a nutrition table, or of a random other panel, for a column."""
    width, language = int(column.width * rng.uniform(0.65, 1)), pick(rng, list(LANGUAGES.values()))
    if is_table:
        return "nutrition", nutrition_table(rng, width, style, language)
    kind = pick(rng, DISTRACTORS)
    return kind, distractor(rng, kind, width, style, language)


def _paste_column(rng: np.random.Generator, face: Image.Image, column: _Column, top: int, gap: int) -> list[Panel]:
    """Pastes the panels of a column below each other, in random order and with random space between them."""
    placed: list[Panel] = []
    y, free = top + gap, max(column.free, 0)
    for i in rng.permutation(len(column.panels)):
        kind, panel = column.panels[i]
        slack = int(rng.random() * free)
        y, free = y + slack, free - slack
        x = column.left + int(rng.random() * max(column.width - panel.width, 0))
        face.paste(panel, (x, y), panel)
        placed.append((kind, (x, y, x + panel.width, y + panel.height)))
        y += panel.height + gap
    return placed


# ---- light -----------------------------------------------------------------------------------------------------------


def _shade(rng: np.random.Generator, face: Image.Image, kind: str) -> Image.Image:
    """Adds the light on the material (a jar is round, a pouch is wrinkled, some faces are glossy) and the transparent margin."""
    width, height = face.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    if kind == "jar":
        _mix(face, (0, 0, 0), 0.55 - 0.55 * np.cos(1.1 * x - 0.05) + 0 * y)
    elif kind == "pouch":
        shade, crimp = 0.1 + 0.35 * fractal(rng, width, height, 5), max(height // 22, 4)
        shade[:crimp] += 0.2 * (np.arange(crimp) % 3 == 0)[:, None]
        shade[-crimp:] += 0.2 * (np.arange(crimp) % 3 == 0)[:, None]
        _mix(face, (0, 0, 0), shade)
    if rng.random() < 0.4:
        across = x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) - rng.uniform(-0.6, 0.6)
        _mix(face, (255, 255, 255), rng.uniform(0.1, 0.5) * np.exp(-((across / rng.uniform(0.06, 0.3)) ** 2)))
    alpha = Image.new("L", face.size)
    radius = {"carton": 1, "card": 3, "pouch": 6, "jar": width // 18}[kind]
    ImageDraw.Draw(alpha).rounded_rectangle((MARGIN, MARGIN, width - MARGIN - 1, height - MARGIN - 1), radius, fill=255)
    face.putalpha(alpha)
    return face


def _mix(face: Image.Image, color: RGB, strength: np.ndarray) -> None:
    """Mixes a color into a face; `strength` is (height, width), 0 to 1."""
    face.paste(color, (0, 0), Image.fromarray((255 * strength).clip(0, 255).astype(np.uint8)))
