"""ImageFinder on which the embedded model is pretrained: things scattered or crowded, pages of blocks, food packages.

`draw_scene(rng, stage)` depends on the generator alone; later stages hold more, smaller things and more kinds of scene.
There is no nutrition table: finding those is what fine-tuning is to teach.
"""

import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pretraining_objects import CLASSES, WORDY, colour, draw_ground, draw_object, ink_on, object_size, turn

from data_prep.products.packages import Package
from data_prep.products.scenes import bound, compose, photograph, visible_part

# What the panels of a package (data_prep.products.labels.DISTRACTORS) are called here.
PANEL_CLASSES = {
    "ingredients": "text", "notes": "text", "barcode": "barcode", "logo": "label",
    "hours": "table", "prices": "table", "recipe": "table",
}  # fmt: skip
MOST_OBJECTS = 15
LEAST_SIDE = 8  # pixels of the picture; smaller things are drawn but not asked for
PAGE_BLOCKS = {  # class: (how often, least and greatest height as shares of the page's)
    "title": (0.2, 0.05, 0.08), "text": (0.45, 0.08, 0.3), "table": (0.2, 0.12, 0.35), "figure": (0.15, 0.12, 0.35),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """How hard the pictures are, for how long, and what learns from them."""

    steps: int
    learns: str  # "vision": that tower with the dense head; "language": answers, on the tower as it is; "both"
    rate: tuple[float, float]  # shares of the peak learning rate at the stage's beginning and end
    batch: int  # pictures a step
    kinds: tuple[str, ...]  # of scene, as often as they are named
    counts: tuple[int, ...]  # of things scattered
    shares: tuple[float, float]  # their long sides over the picture's short side
    area: tuple[int, int]  # pixels of the picture, before the processor's budget
    absent: float = 0.0  # share of questions about a class that is not there
    raster: float = 1.0  # share of answers in the order of lines of print; the others by area, or in any order
    photo: bool = False  # whether things lie turned, on cards, cut by the border, out of focus


EVERYTHING = {
    "kinds": ("scatter", "scatter", "scatter", "packages", "packages", "page", "crowd"),
    "counts": (0, 1, 1, 1, 2, 2, 3, 4, 6),
    "shares": (0.15, 0.90),
    "area": (144 * 144, 256 * 256),
    "absent": 0.12,
    "raster": 0.8,
    "photo": True,
}
CROWDED = EVERYTHING | {"kinds": ("scatter", "scatter", "packages", "packages", "page", "crowd", "crowd")}
EASY = {"kinds": ("scatter",), "shares": (0.20, 0.85), "area": (112 * 112, 176 * 176)}
STAGES = (
    Stage(2000, "vision", (1, 1), 8, counts=(1, 2, 2, 3, 4), **EASY),
    Stage(2500, "vision", (1, 1), 8, **EVERYTHING),
    Stage(1200, "vision", (1, 0), 16, **EVERYTHING),
    Stage(600, "language", (1, 1), 16, counts=(1, 1, 1, 2), absent=0.04, **EASY),
    Stage(1500, "language", (1, 0.1), 16, **EVERYTHING),
    Stage(600, "both", (0.3, 0), 16, **EVERYTHING),
    Stage(1800, "vision", (0.5, 0.2), 16, **CROWDED),
    Stage(1700, "both", (0.5, 0), 16, **CROWDED),
    Stage(1400, "vision", (0.6, 0.3), 16, **CROWDED),
    Stage(400, "language", (0.5, 0.5), 16, **CROWDED),
    Stage(1540, "both", (0.5, 0), 16, **CROWDED),
    Stage(300, "language", (0.5, 0), 16, **CROWDED),
    Stage(1400, "language", (0.6, 0.4), 16, **CROWDED),
    Stage(600, "both", (0.4, 0), 16, **CROWDED),
    Stage(1600, "language", (0.6, 0.1), 16, **CROWDED),
    Stage(600, "both", (0.4, 0), 16, **CROWDED),
)
HELD_OUT_STAGE = Stage(0, "both", (0, 0), 0, **EVERYTHING)  # what is never learned from, only scored


@dataclass
class Scene:
    """A picture and all that is in it; boxes in its pixels."""

    image: Image.Image
    boxes_xyxy: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    kind: str = ""  # of scene, as Stage.kinds names it

    def add(self, label: str, box_xyxy: list[float]) -> None:
        """Note a thing by the part of its box that lies inside the picture."""
        x0, y0, x1, y1 = box_xyxy
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, self.image.width), min(y1, self.image.height)
        if min(x1 - x0, y1 - y0) >= LEAST_SIDE and len(self.labels) < MOST_OBJECTS:
            self.boxes_xyxy.append([x0, y0, x1, y1])
            self.labels.append(label)


def draw_scene(rng: random.Random, stage: Stage) -> Scene:
    area = math.exp(rng.uniform(math.log(stage.area[0]), math.log(stage.area[1])))
    aspect = math.exp(rng.uniform(-0.55, 0.55))
    # Half of the later stages' pictures are larger than the model's input, as photographs are, and shrink on the way.
    scale = rng.uniform(1.0, 1.6) if stage.photo and rng.random() < 0.5 else 1.0
    width, height = round(math.sqrt(area * aspect) * scale), round(math.sqrt(area / aspect) * scale)
    kind = rng.choice(stage.kinds)
    if kind == "packages":
        scene = packages(rng, width, height)
    elif kind == "page":
        scene = page(rng, width, height)
    elif kind == "crowd":
        scene = crowd(rng, width, height)
    else:
        scene = scatter(rng, width, height, stage)
    scene.kind = kind
    if kind != "packages" and stage.photo and rng.random() < 0.4:  # photographs of packages are out of focus as it is
        scene.image = scene.image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * scale))
    return scene


# ---- things anywhere -------------------------------------------------------------------------------------------------


def scatter(rng: random.Random, width: int, height: int, stage: Stage) -> Scene:
    """A few things of any class that do not touch."""
    image, ground = draw_ground(rng, width, height)
    scene = Scene(image)
    for _ in range(rng.choice(stage.counts)):
        name = choose_class(rng, scene.labels)
        for _ in range(8):
            long_side = rng.uniform(*stage.shares) * min(width, height) * (1.3 if name == "title" else 1.0)
            size = object_size(name, rng, long_side)
            if size[0] < width and size[1] < height and place(scene, ground, name, size, stage.photo, rng):
                break
    return scene


def crowd(rng: random.Random, width: int, height: int) -> Scene:
    """Many small things of one to three classes and of like size, as cells or parts lie; they may touch."""
    image, ground = draw_ground(rng, width, height)
    scene = Scene(image)
    names = rng.choices([name for name in CLASSES if name not in {"title", "text"}], k=rng.choice((1, 1, 2, 3)))
    share, gap = rng.uniform(0.15, 0.30), rng.choice((-4, -2, 2))
    ink = ink_on(rng, ground) if rng.random() < 0.6 else None
    for _ in range(rng.randint(4, MOST_OBJECTS)):
        name = rng.choice(names)
        for _ in range(8):
            size = object_size(name, rng, share * rng.uniform(0.75, 1.3) * min(width, height))
            if place(scene, ground, name, size, False, rng, gap, ink):
                break
    return scene


def overlaps(box_xyxy: list[float], others_xyxy: list[list[float]], gap: float) -> bool:
    return any(
        box_xyxy[0] < x1 + gap and box_xyxy[2] > x0 - gap and box_xyxy[1] < y1 + gap and box_xyxy[3] > y0 - gap
        for x0, y0, x1, y1 in others_xyxy
    )


def choose_class(rng: random.Random, labels: list[str]) -> str:
    """Tables are drawn more often: they have the most to show. ImageFinder often hold several things of one class."""
    if labels and rng.random() < 0.35:
        return labels[0]
    return "table" if rng.random() < 0.15 else rng.choice(CLASSES)


def lay_card(scene: Scene, box_xyxy: list[float], rng: random.Random) -> tuple[int, int, int] | None:
    """A plain card below the box, as a sheet or a package; its colour, or None where it would hide something."""
    reach = [rng.uniform(0.02, 0.6) * side for side in (box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]) * 2]
    x0, y0, x1, y1 = (v + sign * r for v, sign, r in zip(box_xyxy, (-1, -1, 1, 1), reach, strict=True))
    if overlaps([x0, y0, x1, y1], scene.boxes_xyxy, gap=0):
        return None
    made = colour(rng, 140, 255) if rng.random() < 0.6 else colour(rng)
    ImageDraw.Draw(scene.image).rounded_rectangle((x0, y0, x1, y1), radius=rng.choice((0, 6)), fill=made)
    return made


def place(
    scene: Scene, ground, name: str, size: tuple[int, int], photo: bool, rng: random.Random, gap: int = 2, ink=None
) -> bool:
    """Draw one thing and note its visible box; False where it would come too near another."""
    (w, h), image = size, scene.image
    out_x, out_y = (round(0.25 * side) if photo and rng.random() < 0.15 else 0 for side in size)
    x, y = rng.randint(-out_x, image.width - w + out_x), rng.randint(-out_y, image.height - h + out_y)
    if overlaps([x, y, x + w, y + h], scene.boxes_xyxy, gap):
        return False
    if photo and rng.random() < 0.5:
        ground = lay_card(scene, [x, y, x + w, y + h], rng) or ground
    tile = draw_object(name, w, h, rng, ground, ink)
    if photo and (angle := choose_angle(name, rng)):
        tile = turn(tile, angle)
        x, y = x + (w - tile.width) // 2, y + (h - tile.height) // 2
    image.paste(tile, (x, y), tile)
    left, top, right, bottom = tile.getbbox(alpha_only=True)
    scene.add(name, [x + left, y + top, x + right, y + bottom])
    return True


def choose_angle(name: str, rng: random.Random) -> float:
    """Degrees: mostly none, often a little; things with words sometimes lie on their side."""
    angle = rng.uniform(-15, 15) if rng.random() < 0.4 else 0.0
    return angle + rng.choice((90, -90)) if name in WORDY and rng.random() < 0.15 else angle


# ---- pages and packages ----------------------------------------------------------------------------------------------


def page(rng: random.Random, width: int, height: int) -> Scene:
    """A sheet of paper: titles, text, tables and figures below one another in one or two columns."""
    paper = colour(rng, 225, 255) if rng.random() < 0.7 else (255, 255, 255)
    scene = Scene(Image.new("RGB", (width, height), paper))
    margin, columns = rng.uniform(0.03, 0.12) * width, 2 if rng.random() < 0.35 else 1
    gap = rng.uniform(0.02, 0.05) * height
    column = (width - 2 * margin - (columns - 1) * gap) / columns
    for i in range(columns):
        left, y = margin + i * (column + gap), rng.uniform(0.03, 0.2) * height
        while True:
            names = list(PAGE_BLOCKS)
            name = rng.choices(names, [PAGE_BLOCKS[name][0] for name in names])[0]
            w = column * (rng.uniform(0.4, 0.9) if name == "title" or rng.random() < 0.2 else 1.0)
            h = max(rng.uniform(*PAGE_BLOCKS[name][1:]) * height, 12)
            if y + h > height - margin:
                break
            x = left + rng.choice((0, 0, 0.5, 1)) * (column - w)
            tile = draw_object(name, round(w), round(h), rng, paper)
            scene.image.paste(tile, (round(x), round(y)), tile)
            inked = tile.getbbox(alpha_only=True)
            scene.add(name, [round(x) + inked[0], round(y) + inked[1], round(x) + inked[2], round(y) + inked[3]])
            y += h + gap * rng.uniform(0.6, 1.6)
    return scene


def packages(rng: random.Random, width: int, height: int) -> Scene:
    """Food packages without a nutrition table: what else is printed on them is what there is to find."""
    generator = np.random.default_rng(rng.getrandbits(64))
    group = compose(generator, width, height, tables=0)
    while not any(package.panels for package in group) and rng.random() < 0.7:
        group = compose(generator, width, height, tables=0)
    scene = Scene(photograph(generator, group, width, height))
    for i, package in enumerate(group):
        for kind, rectangle in package.panels:
            box = bound_of_visible(package, rectangle, width, height)
            if box is not None and not any(hides(other, box) for other in group[i + 1 :]):
                scene.add(PANEL_CLASSES[kind], box)
    return scene


def bound_of_visible(package: Package, rectangle, width: int, height: int) -> list[float] | None:
    """The box of the part of a panel that lies inside the picture, or None."""
    part = visible_part(package.outline(rectangle), width, height)
    return bound(part) if len(part) > 2 else None


def hides(package: Package, box_xyxy: list[float]) -> bool:
    """Whether a package may cover a part of the box."""
    return overlaps(box_xyxy, [bound(np.concatenate([side for side, _ in package.polygons()]))], gap=0)
