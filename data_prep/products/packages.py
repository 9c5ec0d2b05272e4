"""One food package: its printed face, and how it stands in a picture.

The face is drawn flat, bent round a cylinder if it is a jar, and then seen in perspective. `Package.warp` moves pixels
and `Package.outline` moves points through the same map, so a table's box comes from its warped outline.
"""

import colorsys
import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from data_prep.products.labels import DISTRACTORS, Style, distractor, nutrition_table, print_line
from data_prep.products.words import BRANDS, GOODS, LANGUAGES, pick

MARGIN = 2  # transparent pixels around a face, so that its edges come out smooth
BRIGHTNESS = (1.12, 0.7, 0.5, 0.82)  # of a carton's sides: top, right, bottom, left

Rectangle = tuple[float, float, float, float]  # xyxy


@dataclass
class Package:
    """`projection` is the (3, 4) camera that takes (x, y, z, 1), the middle of the face being the origin, to the picture."""

    face: Image.Image  # RGBA, flat
    panels: list[tuple[str, Rectangle]]  # "nutrition" or one of DISTRACTORS, and its place in pixels of the flat face
    colour: tuple[int, int, int]
    depth: float  # of a carton, in pixels of the face; 0 is flat
    bend: float  # half the angle of the visible part of a jar; 0 is flat
    sag: float  # how far the middle of a bent face comes down, in pixels of the face
    projection: np.ndarray

    @property
    def tables(self) -> list[Rectangle]:
        """The nutrition tables, in pixels of the flat face."""
        return [rectangle for kind, rectangle in self.panels if kind == "nutrition"]

    def project(self, points_xyz) -> np.ndarray:
        """(N, 3) points round the middle of the face → (N, 2) points of the picture."""
        warped = np.column_stack([points_xyz, np.ones(len(points_xyz))]) @ self.projection.T
        return warped[:, :2] / warped[:, 2:]

    def moved(self, by_xy: tuple[float, float]) -> "Package":
        """The same package elsewhere in the picture."""
        shift = np.array([[1, 0, by_xy[0]], [0, 1, by_xy[1]], [0, 0, 1]])
        return replace(self, projection=shift @ self.projection)

    def polygons(self) -> list[tuple[np.ndarray, float]]:
        """(4, 2) corners in the picture and brightness of every visible side; the front comes last."""
        x, y = self.face.width / 2 - MARGIN, self.face.height / 2 - MARGIN
        corners = [(-x, -y, 0), (x, -y, 0), (x, y, 0), (-x, y, 0)]
        points = self.project([*corners, *((x, y, self.depth) for x, y, _ in corners)])
        sides = [(points[[i, (i + 1) % 4, (i + 1) % 4 + 4, i + 4]], BRIGHTNESS[i]) for i in range(4)]
        # Corners of the front run clockwise, so those of a side that faces the camera run the other way.
        # A sliver would only fray the edge.
        sliver = 0.02 * signed_area(points[:4])
        return [(side, light) for side, light in sides if signed_area(side) < -sliver] + [(points[:4], 1.0)]

    def outline(self, rectangle: Rectangle) -> np.ndarray:
        """(64, 2) points along the edge of a rectangle of the flat face, clockwise, as they appear in the picture."""
        x0, y0, x1, y1 = rectangle
        t = np.linspace(0, 1, 16, endpoint=False)[:, None]
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], dtype=float)
        x, y = np.concatenate([a + (b - a) * t for a, b in pairwise(corners)]).T
        width, height = self.face.size
        if self.bend:
            angle = self.bend * (2 * x / width - 1)
            x = width / 2 * (1 + np.sin(angle) / math.sin(self.bend))
            y = y * (1 - self.sag / height) + self.sag * _sagging(angle, self.bend)
        return self.project(np.stack([x - width / 2, y - height / 2, np.zeros_like(x)], axis=1))

    def warp(self, face: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
        """A face of this package's size as it appears in a picture of `size`: (RGBA part of it, its top left corner)."""
        face = _bend(face, self.bend, self.sag) if self.bend else face
        front = self.polygons()[-1][0]
        low = np.floor(front.min(axis=0) - 2).clip(0, size).astype(int)
        high = np.ceil(front.max(axis=0) + 2).clip(low + 1, np.maximum(size, low + 1)).astype(int)
        to_middle = np.array([[1, 0, -face.width / 2], [0, 1, -face.height / 2], [0, 0, 1]])
        to_part = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]])
        back = np.linalg.inv(to_part @ self.projection[:, [0, 1, 3]] @ to_middle)
        coefficients = (back / back[2, 2]).ravel()[:8].tolist()
        extent = tuple((high - low).tolist())
        part = face.transform(extent, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
        return part, tuple(low.tolist())


def signed_area(polygon: np.ndarray) -> float:
    """Area of (N, 2) points; positive where they run clockwise in a picture, whose y grows downwards."""
    x, y = np.vstack([polygon, polygon[:1]]).T
    return float(x[:-1] @ y[1:] - y[:-1] @ x[1:]) / 2


def _sagging(angle: np.ndarray, bend: float) -> np.ndarray:
    """0 at the edges of a cylinder, 1 in its middle."""
    return (np.cos(angle) - math.cos(bend)) / (1 - math.cos(bend))


def _bend(face: Image.Image, bend: float, sag: float, strips: int = 24) -> Image.Image:
    """The flat face as seen on a cylinder, in vertical strips."""
    width, height = face.size
    strips = min(strips, width)  # none without breadth
    edges = np.linspace(0, width, strips + 1).round().astype(int).tolist()
    angles = np.arcsin((2 * np.array(edges) / width - 1) * math.sin(bend))
    x = width / 2 * (1 + angles / bend)
    stretch = height / (height - sag)
    top = -sag * _sagging(angles, bend) * stretch
    bottom = top + height * stretch
    mesh = [
        ((edges[i], 0, edges[j], height), (x[i], top[i], x[i], bottom[i], x[j], bottom[j], x[j], top[j]))
        for i, j in zip(range(strips), range(1, strips + 1), strict=True)
    ]
    return face.transform(face.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def is_dark(colour) -> bool:
    return np.dot(colour[:3], (0.3, 0.59, 0.11)) < 135


def fractal(rng, width: int, height: int, cells: int, octaves: int = 3, stretch: float = 1) -> np.ndarray:
    """(height, width) smooth noise of about −0.5…0.5; `stretch` draws it out sideways."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        noise = rng.random((n, max(int(n / stretch), 2)), dtype=np.float32) - 0.5
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return total / 1.5


def make_package(rng, width: int, height: int, roll: float, tables: int) -> Package:
    """A package of about `width` × `height` pixels round the picture's origin, turned by `roll` (radians)."""
    kind = pick(rng, ("carton", "carton", "card", "pouch", "jar"))
    face, panels, colour = _face(rng, kind, width, height, tables)
    depth = width * rng.uniform(0.15, 0.5) if kind == "carton" else 0.0
    bend = rng.uniform(0.8, 1.2) if kind == "jar" else 0.0
    projection = _camera(rng, roll, 2.2 * max(width, height))
    return Package(face, panels, colour, depth, bend, height * rng.uniform(0.01, 0.06), projection)


def _camera(rng, roll: float, distance: float) -> np.ndarray:
    """(3, 4) projection of a package that is turned a little away from the camera."""
    yaw, pitch = rng.normal(0, 0.2, 2).clip(-0.5, 0.5)
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(angle), math.sin(angle)) for angle in (yaw, pitch, roll))
    turn_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    turn_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    lens = np.diag([distance, distance, 1])
    return lens @ np.column_stack([turn_z @ turn_x @ turn_y, (0, 0, distance)])


def _palette(rng) -> tuple[tuple[int, int, int], Style]:
    """(package colour, the style of its print)."""
    hue = rng.random()
    base = pick(
        rng,
        (
            hsv(hue, rng.uniform(0, 0.12), rng.uniform(0.88, 1)),  # white
            hsv(rng.uniform(0.06, 0.11), rng.uniform(0.25, 0.45), rng.uniform(0.65, 0.85)),  # plain cardboard
            hsv(hue, rng.uniform(0.4, 0.85), rng.uniform(0.25, 0.95)),
            hsv(hue, rng.uniform(0.2, 0.6), rng.uniform(0.75, 1)),
        ),
    )
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


def _face(rng, kind: str, width: int, height: int, tables: int):
    """(face, panels, colour): the flat print of a package."""
    base, style = _palette(rng)
    face = Image.new("RGBA", (width, height), base)
    draw, top, bottom = ImageDraw.Draw(face), 0, height
    if rng.random() < 0.25:
        tint = tuple(min(255, c + 14) for c in base)
        for x in range(0, width, step := int(rng.integers(10, 40))):
            draw.rectangle((x, 0, x + step // 2, height), fill=tint)
    if kind == "jar":
        top = int(height * 0.1)
        draw.rectangle(
            (0, 0, width, top), fill=pick(rng, ((190, 190, 195), (230, 228, 220), style.accent, (60, 60, 64)))
        )
    if rng.random() < 0.6:
        band = int(height * rng.uniform(0.08, 0.2))
        at_top = rng.random() < 0.7
        _brand(rng, face, top if at_top else bottom - band, band, base, style)
        top, bottom = (top + band, bottom) if at_top else (top, bottom - band)
    if not tables and rng.random() < 0.5:
        _front(rng, face, top, bottom, base, style)
        panels = []
    else:
        panels = _panels(rng, face, style, tables, top, bottom)
    return _relief(rng, face, kind), panels, base


def _brand(rng, face: Image.Image, top: int, height: int, base, style: Style) -> None:
    """A brand's name, mostly on a coloured band."""
    name, ground = pick(rng, BRANDS), pick(rng, (style.accent, style.accent, base))
    ImageDraw.Draw(face).rectangle((0, top, face.width, top + height), fill=ground)
    size = max(int(min(height * 0.6, face.width * 1.3 / len(name))), 6)
    x = (face.width - 0.6 * size * len(name)) * rng.uniform(0.15, 0.85)
    colour = "white" if is_dark(ground) else (30, 30, 30)
    print_line(face, (x, top + (height - 1.2 * size) / 2), name, size, style, bold=True, colour=colour)


def _front(rng, face: Image.Image, top: int, bottom: int, base, style: Style) -> None:
    """What the front of a package shows: what is in it, in a bowl."""
    draw, hue, size = ImageDraw.Draw(face), rng.uniform(-0.05, 0.32), max(face.width // 9, 7)
    colour = "white" if is_dark(base) else style.accent
    print_line(face, (face.width * 0.08, top + size * 0.3), pick(rng, GOODS), size, style, bold=True, colour=colour)
    top += 2 * size
    side, x, y = 0.9 * min(face.width, bottom - top), face.width / 2, (top + bottom) / 2
    for radius, colour in ((0.5, (250, 248, 240)), (0.46, (222, 216, 204)), (0.41, hsv(hue, 0.6, 0.6))):
        draw.circle((x, y), max(side * radius, 1), fill=colour)
    for _ in range(60):
        angle, r = rng.uniform(0, 2 * math.pi), 0.35 * math.sqrt(rng.random()) * side
        colour = hsv(hue + rng.uniform(-0.06, 0.06), rng.uniform(0.4, 0.8), rng.uniform(0.5, 0.95))
        piece = max(side * rng.uniform(0.03, 0.06), 1)
        draw.circle((x + r * math.cos(angle), y + r * math.sin(angle)), piece, fill=colour)


def _panels(rng, face: Image.Image, style: Style, tables: int, top: int, bottom: int) -> list[tuple[str, Rectangle]]:
    """Print nutrition tables and other panels in one or two columns; what lies where."""
    gap = max(face.width // 30, 4)
    two = face.width > 1.2 * (bottom - top) or rng.random() < 0.15
    cuts = [gap, round(face.width * rng.uniform(0.4, 0.6)), face.width] if two else [gap, face.width]
    widths = [right - left - gap for left, right in pairwise(cuts)]
    columns, free = [[] for _ in widths], [bottom - top - 2 * gap for _ in widths]
    first = int(rng.integers(len(columns)))
    for i in range(tables + 4):
        c, is_table = (first + i) % len(columns), i < tables
        if not is_table and free[c] < 30:
            continue
        breadth, language = int(widths[c] * rng.uniform(0.65, 1)), pick(rng, list(LANGUAGES.values()))
        kind = "nutrition" if is_table else pick(rng, DISTRACTORS)
        what = (breadth, style, language)
        panel = nutrition_table(rng, *what) if is_table else distractor(rng, kind, *what)
        room = free[c] / (2 if tables > len(columns) and i == 0 else 1)
        if panel.height > room and not is_table:
            continue
        panel.thumbnail((widths[c], max(room, 8)), Image.Resampling.LANCZOS)
        columns[c].append((kind, panel))
        free[c] -= panel.height + gap
    placed = []
    for left, width, column, rest in zip(cuts[:-1], widths, columns, free, strict=True):
        y, rest = top + gap, max(rest, 0)
        for i in rng.permutation(len(column)):
            kind, panel = column[i]
            slack = int(rng.random() * rest)
            y, rest = y + slack, rest - slack
            x = left + int(rng.random() * max(width - panel.width, 0))
            face.paste(panel, (x, y), panel)
            placed.append((kind, (x, y, x + panel.width, y + panel.height)))
            y += panel.height + gap
    return placed


def _relief(rng, face: Image.Image, kind: str) -> Image.Image:
    """Light on the material (a jar is round, a pouch has wrinkles, some are glossy) and the transparent margin."""
    width, height = face.size
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    if kind == "jar":
        _shine(face, (0, 0, 0), 0.55 - 0.55 * np.cos(1.1 * x - 0.05) + 0 * y)
    elif kind == "pouch":
        shade, crimp = 0.1 + 0.35 * fractal(rng, width, height, 5), max(height // 22, 4)
        shade[:crimp] += 0.2 * (np.arange(crimp) % 3 == 0)[:, None]
        shade[-crimp:] += 0.2 * (np.arange(crimp) % 3 == 0)[:, None]
        _shine(face, (0, 0, 0), shade)
    if rng.random() < 0.4:
        across = x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1) - rng.uniform(-0.6, 0.6)
        _shine(face, (255, 255, 255), rng.uniform(0.1, 0.5) * np.exp(-((across / rng.uniform(0.06, 0.3)) ** 2)))
    alpha = Image.new("L", face.size)
    radius = {"carton": 1, "card": 3, "pouch": 6, "jar": width // 18}[kind]
    ImageDraw.Draw(alpha).rounded_rectangle((MARGIN, MARGIN, width - MARGIN - 1, height - MARGIN - 1), radius, fill=255)
    face.putalpha(alpha)
    return face


def _shine(face: Image.Image, colour: tuple[int, int, int], strength: np.ndarray) -> None:
    """Mix a colour into a picture, (height, width) strengths of 0…1."""
    face.paste(colour, (0, 0), Image.fromarray((255 * strength).clip(0, 255).astype(np.uint8)))
