"""The print on a food package: nutrition tables, and other print that a detector must not confuse with them.

Every panel is an RGBA image that is cropped to its ink, so its edges are where an annotator would draw the box. A panel may
be wider than requested if its text would not be legible otherwise; the caller scales it down.
"""

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.products.words import BRANDS, GOODS, LANGUAGES, Language, nutrients, pick, plain, words

Color = tuple[int, ...]  # RGB or RGBA
Point = tuple[float, float]
CLEAR, WHITE = (0, 0, 0, 0), (255, 255, 255, 255)
SMALLEST_FONT = 6
EM, LINE = 32, 42  # pixels: the size at which letters are drawn before they are scaled, and the height of a line


class Style(NamedTuple):
    """How a package prints its text and tables."""

    ink: Color  # on the paper
    bare_ink: Color  # directly on the package
    paper: Color  # background of tables; with alpha 0 the package shows through
    accent: Color
    border: int  # width of the frame in pixels; 0 for none
    rules: str  # "rows", "both" or ""
    zebra: bool
    header: bool  # whether the first row has the accent color
    leading: float  # row height divided by font size
    narrow: float  # horizontal scale of the letters


# ---- letters ---------------------------------------------------------------------------------------------------------


@cache
def _glyph(char: str, bold: bool) -> tuple[Image.Image, int]:
    """(mask (L) with the height of a line, advance) of one character of size EM."""
    font = ImageFont.load_default(EM)
    advance = round(font.getlength(char))
    mask = Image.new("L", (advance + 4, LINE))
    ImageDraw.Draw(mask).text((2, EM), char, fill=255, font=font, anchor="ls", stroke_width=bold * EM / 32)
    return mask, advance


@lru_cache(maxsize=20_000)
def _em(text: str) -> float:
    """The length of a text divided by its font size."""
    return sum(_glyph(char, False)[1] for char in text) / EM


@lru_cache(maxsize=20_000)
def _letters(text: str, size: int, bold: bool, narrow: float) -> Image.Image:
    """A text as a mask (L) with the height of a line. Scaling cached glyphs is several times faster than drawing each size."""
    line, x = Image.new("L", (round(_em(text) * EM) + 4, LINE)), 0
    for char in text:
        mask, advance = _glyph(char, bold)
        line.paste(255, (x, 0), mask)
        x += advance
    width, height = max(round(line.width * narrow * size / EM), 1), round(size * LINE / EM)
    return line.resize((width, height), Image.Resampling.HAMMING)


def print_line(
    image: Image.Image,
    xy: Point,
    text: str,
    size: int,
    style: Style,
    *,
    bold: bool = False,
    right: bool = False,
    color: Color | str | None = None,
) -> None:
    """Prints a line with its top left corner at `xy`, or its top right corner if `right` is set."""
    mask = _letters(text, size, bold, style.narrow)
    image.paste(color or style.ink, (round(xy[0]) - (mask.width if right else 0), round(xy[1])), mask)


def paragraph(text: str, size: int, width: int, style: Style, framed: bool = False) -> Image.Image:
    """Running text with a bold first word."""
    pad, step = (size // 2 if framed else 1), round(size * 1.25)
    places: list[tuple[float, int, str]] = []
    x: float = pad
    y = pad
    for word in text.split():
        length = _em(word) * size * style.narrow
        if x > pad and x + length > width - pad:
            x, y = pad, y + step
        places.append((x, y, word))
        x += length + _em(" ") * size * style.narrow
    panel = Image.new("RGBA", (width, y + step + pad), style.paper if framed else CLEAR)
    color = style.ink if framed else style.bare_ink
    for i, (x, y, word) in enumerate(places):
        print_line(panel, (x, y), word, size, style, bold=i == 0, color=color)
    if framed:
        ImageDraw.Draw(panel).rectangle((0, 0, panel.width - 1, panel.height - 1), outline=style.ink)
    return panel.crop(panel.getbbox())


# ---- tables ----------------------------------------------------------------------------------------------------------


def grid(rows: list[list[str]], width: int, style: Style, title: str = "") -> Image.Image:
    """A table with row 0 as its heading, the first column left-aligned and the others right-aligned. The font is as large as
    the width allows."""
    ems = [max(map(_em, column)) * style.narrow + 0.9 for column in zip(*rows, strict=True)]
    width = max(width, int(SMALLEST_FONT * sum(ems)) + 1)
    size = min(int(width / sum(ems)), max(width // 8, SMALLEST_FONT))
    title_size = min(int(size * 1.3), int(width / (_em(title) * style.narrow + 1))) if title else 0
    step, top = round(size * style.leading), round(title_size * 1.5)
    height = top + step * len(rows) + 1
    panel = Image.new("RGBA", (width, height), style.paper)
    draw = ImageDraw.Draw(panel)
    if title:
        print_line(panel, (0.4 * size, 0.15 * title_size), title, title_size, style, bold=True)
    stripe = _stripe(style)
    rights = [width - size * sum(ems[j + 1 :]) for j in range(len(ems))]
    for i, row in enumerate(rows):
        y, on_accent = top + i * step, style.header and i == 0
        if on_accent or (style.zebra and i % 2):
            draw.rectangle((0, y, width, y + step), fill=style.accent if on_accent else stripe)
        if style.rules:
            draw.line((0, y, width, y), fill=style.ink)
        for j, cell in enumerate(row):
            xy = (rights[j] - 0.4 * size if j else 0.4 * size, y + (step - size * 1.2) / 2)
            print_line(panel, xy, cell, size, style, bold=i == 0, right=j > 0, color=WHITE if on_accent else None)
    if style.rules == "both":
        for x in rights[:-1]:
            draw.line((x, top, x, height), fill=style.ink)
    if style.border:
        draw.rectangle((0, 0, width - 1, height - 1), outline=style.ink, width=style.border)
    return panel.crop(panel.getbbox())


def _stripe(style: Style) -> Color:
    """The color of every second row. Drawing replaces what is below, so on paper the accent color is mixed into the paper's;
    directly on the package it is transparent."""
    if not style.paper[3]:
        return (*style.accent, 60)
    mixed = (round(0.8 * p + 0.2 * a) for p, a in zip(style.paper, style.accent, strict=False))
    return (*mixed, 255)


def nutrition_facts(rng: np.random.Generator, width: int, style: Style) -> Image.Image:
    """The black box used in North America: a large heading, thick bars, percentages on the right."""
    width, style = max(width, 14 * SMALLEST_FONT), style._replace(ink=(15, 15, 15), paper=WHITE)
    size, pad = width // 14, max(width // 40, 3)
    title = pick(rng, ("Nutrition Facts", "Nutrition Facts", "Valeur nutritive", "Datos de Nutricion"))
    energy, fat, saturates, carbohydrate, sugars, fiber, protein, salt = nutrients(rng, 0.4)
    facts = [f"Total Fat {fat}", f"  Saturated {saturates}", f"Sodium {salt}", f"Carbohydrate {carbohydrate}"]
    facts += [f"  Dietary Fiber {fiber}", f"  Sugars {sugars}", f"Protein {protein}"]
    lines = [  # left text, right text, font size, width of the bar below
        (title, "", int(width * 0.9 / (_em(title) * style.narrow)), 1),
        (f" Serving size {rng.integers(25, 60)} g", "", size, size // 2),
        ("Calories", energy.split("/")[1][:-5], round(size * 1.6), size // 3),
        *((fact, f"{rng.integers(0, 40)}%", size, 1) for fact in facts),
    ]
    height = sum(int(font_size * 1.35) + bar for _, _, font_size, bar in lines) + pad
    panel = Image.new("RGBA", (width, height), style.paper)
    draw, y = ImageDraw.Draw(panel), 1
    for left, right, font_size, bar in lines:
        print_line(panel, (pad, y), left, font_size, style, bold=left[0] != " ")
        print_line(panel, (width - pad, y), right, font_size, style, right=True)
        y += int(font_size * 1.35)
        draw.rectangle((pad, y, width - pad - 1, y + bar - 1), fill=style.ink)
        y += bar
    draw.rectangle((0, 0, width - 1, panel.height - 1), outline=style.ink, width=max(width // 90, 1))
    return panel


def nutrition_table(rng: np.random.Generator, width: int, style: Style, language: Language) -> Image.Image:
    """A nutrition table in one of the usual forms."""
    title, names = pick(rng, words(language.title)), words(language.nutrients)
    form = rng.random()
    if form < (0.35 if language is LANGUAGES["en"] else 0.1):
        return nutrition_facts(rng, width, style)
    if form > (0.75 if width > 160 else 0.95):
        facts = list(zip(names, nutrients(rng), strict=True))
        if rng.random() < 0.5:
            return _running_table(rng, width, style, f"{title} {plain(language.per_100)}", facts)
        return _horizontal_table(rng, width, style, title, facts)
    return _vertical_table(rng, width, style, title, language)


def _vertical_table(rng: np.random.Generator, width: int, style: Style, title: str, language: Language) -> Image.Image:
    """A table with one row for each nutrient."""
    names = [f"  {name}" if i in (2, 4) else name for i, name in enumerate(words(language.nutrients))]
    columns = [[plain(language.per_100), *nutrients(rng)]]
    if rng.random() < 0.55:
        columns.append([plain(language.serving), *nutrients(rng, rng.uniform(0.15, 0.5))])
    if rng.random() < 0.25:
        columns.append(["%*", *(f"{rng.integers(1, 40)}%" for _ in names)])
    titled = rng.random() < 0.7
    rows = [list(row) for row in zip(["" if titled else title, *names], *columns, strict=True)]
    if rng.random() < 0.4:  # kilojoules and kilocalories on separate lines
        energy = [[*cell.split("/"), ""][:2] for cell in rows[1]]
        rows[1:2] = [list(line) for line in zip(*energy, strict=True)]
    if rng.random() < 0.3:
        rows = [row for row in rows if row[0] not in (names[2], names[5])]
    return grid(rows, width, style, title if titled else "")


def _running_table(
    rng: np.random.Generator, width: int, style: Style, heading: str, facts: list[tuple[str, str]]
) -> Image.Image:
    """The facts of a nutrition table, (name, value), as running text."""
    text = f"{heading}: {', '.join(f'{name} {value}' for name, value in facts)}."
    return paragraph(text, max(width // 26, SMALLEST_FONT + 1), width, style, framed=rng.random() < 0.7)


def _horizontal_table(
    rng: np.random.Generator, width: int, style: Style, title: str, facts: list[tuple[str, str]]
) -> Image.Image:
    """A table with one column for each of some facts, (name, value)."""
    kept = [facts[i] for i in pick(rng, ((0, 1, 3, 6, 7), (0, 1, 2, 3, 4, 7)))]
    names = [name.split()[-1].capitalize() for name, _ in kept]
    rows = [names, [value.split("/")[-1] for _, value in kept]]
    if rng.random() < 0.6:
        rows.append([f"{rng.integers(1, 40)}%" for _ in kept])
    return grid(rows, width, style, title)


# ---- other print -----------------------------------------------------------------------------------------------------

DISTRACTORS = ("ingredients", "ingredients", "notes", "barcode", "hours", "prices", "recipe", "logo")


def distractor(rng: np.random.Generator, kind: str, width: int, style: Style, language: Language) -> Image.Image:
    """Print of another kind, one of DISTRACTORS; often a table in the same style as a nutrition table."""
    heading, *in_order = words(language.ingredients)
    items: list[str] = list(rng.permutation(in_order))
    size = max(int(width / rng.uniform(18, 30)), SMALLEST_FONT + 1)
    if kind == "ingredients":
        shares = [f"{item} ({rng.integers(2, 40)}%)" if rng.random() < 0.4 else item for item in items]
        return paragraph(f"{heading}: {', '.join(shares)}.", size, width, style)
    if kind == "notes":
        text = f"{plain(language.notes)} {pick(rng, BRANDS)}, {rng.integers(10**4, 10**5)}"
        return paragraph(text, size, width, style)
    if kind == "barcode":
        return _barcode(rng, min(width, 40 + width // 2), style)
    if kind == "logo":
        return _logo(rng, width, style)
    if kind == "hours":
        times = [f"{rng.integers(7, 11)}:00-{rng.integers(16, 22)}:30" for _ in range(2)]
        return grid([[pick(rng, BRANDS), "AM", "PM"], *([day, *times] for day in words(language.week))], width, style)
    if kind == "prices":
        rows = [[item.capitalize(), f"{rng.uniform(0.5, 20):.2f}"] for item in items[: rng.integers(3, 9)]]
        return grid([[pick(rng, GOODS), "EUR"], *rows], width, style)
    steps = [[f"{i}. {step}", f"{rng.integers(2, 30)} min"] for i, step in enumerate(words(language.steps), 1)]
    return grid([[pick(rng, GOODS), ""], *steps], width, style)


def _barcode(rng: np.random.Generator, width: int, style: Style) -> Image.Image:
    width = max(width, 50)
    height, size = round(width * rng.uniform(0.4, 0.7)), max(width // 13, SMALLEST_FONT)
    panel = Image.new("RGBA", (width, height), WHITE)
    draw, left = ImageDraw.Draw(panel), 4
    while left < width - 6:
        bar = int(rng.integers(1, 4))
        draw.rectangle((left, 3, left + bar - 1, height - size - 5), fill="black")
        left += bar + int(rng.integers(1, 4))
    digits = f"{rng.integers(10**5, 10**6)} {rng.integers(10**5, 10**6)}"
    x = (width - _em(digits) * size * style.narrow) / 2
    print_line(panel, (x, height - 1.25 * size), digits, size, style, color="black")
    return panel


def _logo(rng: np.random.Generator, width: int, style: Style) -> Image.Image:
    """A round or square seal with a short word."""
    side = max(int(width * rng.uniform(0.3, 0.6)), 16)
    panel = Image.new("RGBA", (side, side), CLEAR)
    draw, word = ImageDraw.Draw(panel), pick(rng, ("BIO", "ECO", "VEGAN", "NEW", "1 kg", "FSC", "100%"))
    draw_shape = pick(rng, (draw.ellipse, draw.ellipse, draw.rectangle))
    draw_shape((0, 0, side - 1, side - 1), fill=style.accent, outline=style.ink, width=max(side // 20, 1))
    size = max(int(side / max(_em(word) * 1.4, 3)), SMALLEST_FONT)
    x = (side - _em(word) * size * style.narrow) / 2
    print_line(panel, (x, side / 2 - 0.65 * size), word, size, style, bold=True, color="white")
    return panel
