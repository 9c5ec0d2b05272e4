"""The images on which the embedded model is pretrained: scattered or crowded objects, document pages, food packages.

`draw_scene(rng, stage)` depends on the generator only. Later stages have more and smaller objects and more kinds of scene.
There is no nutrition table: fine-tuning is supposed to teach those.
"""

import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from assets.pretraining_objects import (
    DOCUMENT_PARTS,
    DRAWN,
    EMOJI,
    SHAPES,
    WITH_WORDS,
    color,
    draw_background,
    draw_object,
    ink_on,
    object_size,
    turn,
)
from data_prep.products.backgrounds import draw_background as draw_photo_background
from data_prep.products.geometry import bound, signed_area, visible_part
from data_prep.products.packages import Package
from data_prep.products.placing import compose, random_view
from data_prep.products.scenes import photograph

# The class of each panel of a package (data_prep.products.labels.DISTRACTORS).
PANEL_CLASSES = {
    "ingredients": "text", "notes": "text", "barcode": "barcode", "logo": "label",
    "hours": "table", "prices": "table", "recipe": "table",
}  # fmt: skip
SIDES = range(96, 449, 32)  # pixels
MAX_OBJECTS = 15
MIN_PART = 0.25  # of the panel of a package; panels of which less is inside the image are not annotated
MIN_SIDE = 8  # pixels of the image; smaller objects are drawn but not annotated
PAGE_BLOCKS = {  # class: (frequency, minimum and maximum height as fractions of the page's height)
    "title": (0.2, 0.05, 0.08), "text": (0.45, 0.08, 0.3), "table": (0.2, 0.12, 0.35), "figure": (0.15, 0.12, 0.35),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A stage of pretraining: the difficulty of its images, its length, and the parts of the model that it trains."""

    steps: int
    learns: str  # "vision": the vision tower with the dense head; "language": answers, with a frozen tower; "both"
    rate: tuple[float, float]  # fractions of the peak learning rate at the start and end of the stage
    kinds: tuple[str, ...]  # of scene; one that is listed twice is drawn twice as often
    counts: tuple[int, ...]  # possible numbers of scattered objects
    shares: tuple[float, float]  # range of their long sides, as fractions of the image's short side
    area: tuple[int, int]  # range of the image's pixels
    pixels: int  # of the images of a batch
    raster: float = 1.0  # fraction of answers in reading order; the others are ordered by area or at random
    photo: bool = False  # whether objects are rotated, on cards, cut by the border or out of focus
    absent: float = 0.12  # fraction of box questions that ask for one class, which the image lacks
    talk: float = 0.0  # fraction of conversations about something other than boxes
    talks: tuple[int, ...] = (2, 1, 1, 1, 1, 2)  # their weights, in the order of pretraining_questions.TALKS
    short: float = 0.0  # the weight of an answer's tokens is its length to the power of -short


EVERYTHING = {
    "kinds": ("scatter", "scatter", "scatter", "packages", "packages", "page", "crowd", "crowd"),
    "counts": (0, 1, 1, 1, 2, 2, 3, 4, 6),
    "shares": (0.12, 0.90),
    "area": (112 * 112, 400 * 400),
    "raster": 0.8,
    "photo": True,
    "talk": 0.3,
}
FEW = 8 * 224 * 224  # pixels: batches for a CPU
SOME, MANY = 2 * FEW, 8 * FEW  # for a GPU
SMALL = EVERYTHING | {"area": (112 * 112, 224 * 224)}
# Whether there is an object at all, and what a box contains: the last stage trains more on such decisions of a few tokens.
DECISIONS = {"absent": 0.25, "talks": (2, 1, 2, 1, 1, 1), "short": 0.5}
EASY = {"kinds": ("scatter",), "shares": (0.20, 0.85), "area": (112 * 112, 192 * 192)}
STAGES = (
    Stage(1500, "vision", (1, 1), pixels=FEW, counts=(1, 2, 2, 3, 4), **EASY),
    Stage(7000, "vision", (1, 0.7), pixels=FEW, **SMALL),
    Stage(300, "vision", (0.7, 0.7), pixels=MANY, **EVERYTHING),
    Stage(300, "language", (1, 1), pixels=SOME, counts=(1, 1, 1, 2), **EASY),
    Stage(700, "language", (1, 0.7), pixels=MANY, **EVERYTHING),
    Stage(1376, "both", (0.7, 0.4465), pixels=MANY, **EVERYTHING),
    Stage(1500, "both", (0.4465, 0), pixels=SOME, **EVERYTHING | DECISIONS),
)
# Used for scoring only, never for training.
HELD_OUT_STAGE = Stage(0, "both", (0, 0), pixels=FEW, **EVERYTHING | {"talk": 0.0})


@dataclass
class Scene:
    """An image and all of its objects, with boxes in its pixels."""

    image: Image.Image
    boxes_xyxy: list[list[float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    kind: str = ""  # one of Stage.kinds

    def resized(self, size: tuple[int, int]) -> "Scene":
        """The scene with an image of `size` (width, height); objects that are too small now are not annotated."""
        if self.image.size == size:
            return self
        scene = Scene(self.image.resize(size, Image.Resampling.BICUBIC), kind=self.kind)
        across, down = size[0] / self.image.width, size[1] / self.image.height
        for (x0, y0, x1, y1), label in zip(self.boxes_xyxy, self.labels, strict=True):
            scene.add(label, [x0 * across, y0 * down, x1 * across, y1 * down])
        return scene

    def add(self, label: str, box_xyxy: list[float]) -> None:
        """Annotate an object with the part of its box that is inside the image, unless that part is too small."""
        x0, y0, x1, y1 = box_xyxy
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, self.image.width), min(y1, self.image.height)
        if min(x1 - x0, y1 - y0) >= MIN_SIDE and len(self.labels) < MAX_OBJECTS:
            self.boxes_xyxy.append([x0, y0, x1, y1])
            self.labels.append(label)


def draw_size(rng: random.Random, stage: Stage) -> tuple[int, int]:
    """(width, height) of the input of a batch: multiples of SIDES' step, of any aspect ratio within SIDES."""
    area = math.exp(rng.uniform(math.log(stage.area[0]), math.log(stage.area[1])))
    aspect = math.exp(rng.uniform(-0.7, 0.7))
    width, height = (
        min(max(round(side / SIDES.step) * SIDES.step, SIDES.start), SIDES[-1])
        for side in (math.sqrt(area * aspect), math.sqrt(area / aspect))
    )
    return width, height


def draw_scene(rng: random.Random, stage: Stage, size: tuple[int, int]) -> Scene:
    """One image of `size` (width, height), with a random kind and content within the stage's ranges."""
    # Half of the images of later stages are drawn larger and then resized, as photographs are.
    scale = rng.uniform(1.0, 1.6) if stage.photo and rng.random() < 0.5 else 1.0
    width, height = (round(side * scale) for side in size)
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
    if kind != "packages" and stage.photo:  # images of packages are photographs already
        scene.image = expose(rng, scene.image, scale)
    return scene.resized(size)


def expose(rng: random.Random, image: Image.Image, scale: float) -> Image.Image:
    """Sometimes blurred, darker or brighter, with another contrast, or with noise."""
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * scale))
    if rng.random() < 0.4:
        low, high = rng.randint(0, 60), rng.randint(180, 255)
        image = image.point([low + (high - low) * v // 255 for v in range(256)] * 3)
    if rng.random() < 0.25:
        grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(3, 14), (image.height, image.width, 1))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
    return image


# ---- scattered and crowded objects ------------------------------------------------------------------------------------


def scatter(rng: random.Random, width: int, height: int, stage: Stage) -> Scene:
    """A few objects of one or more themes that do not touch."""
    image, background = draw_ground(rng, width, height)
    scene = Scene(image)
    names = choose_names(rng)
    for _ in range(rng.choice(stage.counts)):
        name = scene.labels[0] if scene.labels and rng.random() < 0.35 else rng.choice(names)
        for _ in range(8):
            long_side = rng.uniform(*stage.shares) * min(width, height) * (1.3 if name == "title" else 1.0)
            size = object_size(name, rng, long_side)
            if size[0] < width and size[1] < height and place(scene, background, name, size, stage.photo, rng):
                break
    return scene


def crowd(rng: random.Random, width: int, height: int) -> Scene:
    """Many small objects of one to three classes, such as cells or parts, each class of one size; they may touch."""
    image, background = draw_ground(rng, width, height)
    scene = Scene(image)
    names = rng.choices(["cell", "cell", *SHAPES, *rng.sample(list(EMOJI), 20)], k=rng.choice((1, 1, 2, 3)))
    shares, gap = {name: rng.uniform(0.08, 0.30) for name in names}, rng.choice((-8, -4, -2, 2))
    ink = ink_on(rng, background) if rng.random() < 0.6 else None
    for _ in range(rng.randint(4, MAX_OBJECTS)):
        name = rng.choice(names)
        for _ in range(8):
            size = object_size(name, rng, shares[name] * rng.uniform(0.75, 1.3) * min(width, height))
            if place(scene, background, name, size, False, rng, gap, ink):
                break
    return scene


def overlaps(box_xyxy: list[float], others_xyxy: list[list[float]], gap: float) -> bool:
    """Whether the box is closer than `gap` pixels to any of the others."""
    return any(
        box_xyxy[0] < x1 + gap and box_xyxy[2] > x0 - gap and box_xyxy[1] < y1 + gap and box_xyxy[3] > y0 - gap
        for x0, y0, x1, y1 in others_xyxy
    )


def choose_names(rng: random.Random) -> list[str]:
    """The names from which an image's objects are chosen: emoji, shapes, parts of documents, or all."""
    themes = (
        rng.sample(list(EMOJI), 4),
        list(SHAPES),
        [*DOCUMENT_PARTS, "table"],
        [*DRAWN, *rng.sample(list(EMOJI), 15)],
    )
    return rng.choices(themes, (0.45, 0.2, 0.2, 0.15))[0]


def draw_ground(rng: random.Random, width: int, height: int) -> tuple[Image.Image, tuple[int, int, int]]:
    """(image, its main color): a drawn background, or one of those of product photographs."""
    if rng.random() < 0.6:
        return draw_background(rng, width, height)
    image = draw_photo_background(np.random.default_rng(rng.getrandbits(64)), width, height)
    return image, image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))


def lay_card(scene: Scene, box_xyxy: list[float], rng: random.Random) -> tuple[int, int, int] | None:
    """Draw a plain card under the box, such as a sheet or package. Returns its color, or None if it would cover an object."""
    reach = [rng.uniform(0.02, 0.6) * side for side in (box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]) * 2]
    x0, y0, x1, y1 = (v + sign * r for v, sign, r in zip(box_xyxy, (-1, -1, 1, 1), reach, strict=True))
    if overlaps([x0, y0, x1, y1], scene.boxes_xyxy, gap=0):
        return None
    made = color(rng, 140, 255) if rng.random() < 0.6 else color(rng)
    ImageDraw.Draw(scene.image).rounded_rectangle((x0, y0, x1, y1), radius=rng.choice((0, 6)), fill=made)
    return made


def place(
    scene: Scene, background, name: str, size: tuple[int, int], photo: bool, rng: random.Random, gap: int = 2, ink=None
) -> bool:
    """Draw one object and annotate its visible box. Returns False if it would be too close to another one."""
    (w, h), image = size, scene.image
    out_x, out_y = (round(0.25 * side) if photo and rng.random() < 0.15 else 0 for side in size)
    x, y = rng.randint(-out_x, image.width - w + out_x), rng.randint(-out_y, image.height - h + out_y)
    if overlaps([x, y, x + w, y + h], scene.boxes_xyxy, gap):
        return False
    if photo and rng.random() < 0.5:
        background = lay_card(scene, [x, y, x + w, y + h], rng) or background
    tile = draw_object(name, w, h, rng, background, ink)
    if photo and (angle := choose_angle(name, rng)):
        tile = turn(tile, angle)
        x, y = x + (w - tile.width) // 2, y + (h - tile.height) // 2
    image.paste(tile, (x, y), tile)
    left, top, right, bottom = tile.getbbox(alpha_only=True)
    scene.add(name, [x + left, y + top, x + right, y + bottom])
    return True


def choose_angle(name: str, rng: random.Random) -> float:
    """A rotation in degrees: usually 0, often small; objects with words are sometimes on their side."""
    angle = rng.uniform(-15, 15) if rng.random() < 0.4 else 0.0
    return angle + rng.choice((90, -90)) if name in WITH_WORDS and rng.random() < 0.15 else angle


# ---- pages and packages ----------------------------------------------------------------------------------------------


def page(rng: random.Random, width: int, height: int) -> Scene:
    """A document page: titles, text, tables and figures, stacked in one or two columns."""
    paper = color(rng, 225, 255) if rng.random() < 0.7 else (255, 255, 255)
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
    """Food packages without a nutrition table; the other panels printed on them are the objects."""
    generator = np.random.default_rng(rng.getrandbits(64))
    view = random_view(generator)
    group = compose(generator, width, height, 0, view)
    while not any(package.panels for package in group) and rng.random() < 0.7:
        group = compose(generator, width, height, 0, view)
    scene = Scene(photograph(generator, group, width, height))
    for i, package in enumerate(group):
        for kind, rectangle in package.panels:
            box = bound_of_visible(package, rectangle, width, height)
            if box is not None and not any(hides(other, box) for other in group[i + 1 :]):
                scene.add(PANEL_CLASSES[kind], box)
    return scene


def bound_of_visible(package: Package, rectangle, width: int, height: int) -> list[float] | None:
    """The bounding box of the part of a panel that is inside the image, or None if there is too little of it."""
    outline = package.outline(rectangle)
    part = visible_part(outline, width, height)
    return bound(part) if len(part) > 2 and signed_area(part) >= MIN_PART * signed_area(outline) else None


def hides(package: Package, box_xyxy: list[float]) -> bool:
    """Whether a package may cover part of the box."""
    return overlaps(box_xyxy, [bound(np.concatenate([side for side, _ in package.polygons()]))], gap=0)
