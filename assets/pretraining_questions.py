"""The conversations of pretraining. Most ask for boxes; the others are what later training builds on.

- an example turn with an image of its own, before the question
- yes/no questions about a class, and about a given box
- short captions of objects and scenes
- images that have nothing to do with the question, where the system prompt has a rule for them
"""

import random

from assets.pretraining_images import Scene, Stage, draw_scene
from assets.pretraining_objects import CLASSES, DOCUMENT_PARTS, EMOJI, SHAPES
from boxtune.answers.codecs import CODECS, Codec
from boxtune.answers.conversation import FORMAT_SENTENCES
from boxtune.answers.irrelevant import irrelevant_rule
from boxtune.answers.verifier import NO, YES, box_question
from boxtune.data.boxes import box_iou
from boxtune.data.questions import IMAGE, join_names, question
from boxtune.data.records import in_order, raster_order

FAMILY = "qwen3_vl"
CODEC: Codec = CODECS[FAMILY]
IRRELEVANT = "无关图片"
RULE = f" {irrelevant_rule(IRRELEVANT)}"  # appended to the system prompt
TALKS = ("example", "class", "box", "object caption", "scene caption", "irrelevant")
THEMES = (list(EMOJI), list(SHAPES), list(DOCUMENT_PARTS))


def texts() -> list[str]:
    """What the tokenizer learns its merges from beside boxtune's prompts: every name, and each kind of short conversation."""
    asked = ["Is there a {} in the image?", "Is the {} in the box [1]?", "A small {}.", "A medium {}.", "A large {}."]
    others = [RULE, IRRELEVANT, "Describe the object in the box [1].", "Describe the image.", "Yes.", "No.", "Nothing."]
    return (
        [question([name]) for name in CLASSES] + [text.format(name) for text in asked for name in CLASSES] + others * 20
    )


def themes_of(labels: list[str]) -> list[list[str]]:
    return [theme for theme in THEMES if set(theme) & set(labels)]


def choose_question(rng: random.Random, labels: list[str], absent_only: float) -> list[str]:
    """The classes to ask for: one that is present, all that are present plus some absent ones, or one that is absent.

    The last happens with probability `absent_only`, and always for images without objects. Half of the absent ones are
    of the same theme as those in the image.
    """
    present = sorted(set(labels))
    alike = [name for theme in themes_of(present) for name in theme if name not in present]

    def absent() -> str:
        return rng.choice(alike if alike and rng.random() < 0.5 else [n for n in CLASSES if n not in present])

    if not present or rng.random() < absent_only:
        return [absent()]
    if rng.random() < 0.35:
        return [rng.choice(present)]
    asked = list(dict.fromkeys([*present, *(absent() for _ in range(rng.choice((0, 0, 1, 2))))]))
    rng.shuffle(asked)
    return asked


def choose_order(rng: random.Random, stage: Stage) -> str:
    """The order of the answer: usually raster, otherwise largest first or random (see boxtune.data.records.in_order)."""
    return rng.choices(("raster", "area", "random"), (stage.raster, (1 - stage.raster) / 2, (1 - stage.raster) / 2))[0]


def make_record(name: str, stage: Stage, size: tuple[int, int], talk: str | None = None) -> dict:
    """A prepared record with its images in memory. Depends on the arguments only.

    scenes: the images of the conversation, the record's own last. Each keeps all objects, also those not asked for.
    rule: whether the system prompt ends in RULE. talk: one of TALKS, or "boxes"; None draws it.
    """
    rng = random.Random(name)
    scene = draw_scene(rng, stage, size)
    if talk is None:
        talk = rng.choices(TALKS, stage.talks)[0] if rng.random() < stage.talk else "boxes"
    if not scene.labels and talk in {"box", "object caption", "irrelevant"}:
        talk = "boxes"
    record = {
        "id": name,
        "image": name,
        "width": size[0],
        "height": size[1],
        "scenes": [scene],
        "rule": False,
        "talk": talk,
    }
    if talk in {"boxes", "example", "irrelevant"}:
        add_boxes(record, rng, stage)
    else:
        asked, answer = TALKERS[talk](rng, scene)
        record["objects"] = {"bbox": [], "category": [], "ignore": []}
        record["messages"] = [{"role": "user", "content": IMAGE + asked}, {"role": "assistant", "content": answer}]
    return record


def add_boxes(record: dict, rng: random.Random, stage: Stage) -> None:
    """A question for boxes, with an example before it or with the rule for unrelated images if `talk` says so."""
    scene, talk = record["scenes"][0], record["talk"]
    asked = choose_question(rng, scene.labels, stage.absent)
    turns: list[dict] = []
    if talk == "example":
        example = draw_scene(rng, stage, (record["width"], record["height"]))
        if example.labels:
            asked = list(dict.fromkeys([*asked, rng.choice(example.labels)]))
        record["scenes"] = [example, scene]
        shown = objects_of(example, asked)
        size = (record["height"], record["width"])
        answer = CODEC.encode(shown["bbox"], shown["category"], size, size).text
        turns = [
            {"role": "user", "content": f"{question(asked)} {FORMAT_SENTENCES[CODEC.syntax]}"},
            {"role": "assistant", "content": answer},
        ]
    answer = "<boxes>"
    if talk == "irrelevant":
        record["rule"] = True
        others = [theme for theme in THEMES if theme not in themes_of(scene.labels)]
        if others and rng.random() < 0.6:
            asked, answer = rng.sample(rng.choice(others), rng.choice((1, 2, 3))), IRRELEVANT
    record["objects"] = objects_of(scene, asked)
    record["messages"] = [
        *turns,
        {"role": "user", "content": question(asked)},
        {"role": "assistant", "content": answer},
    ]
    if answer == IRRELEVANT:  # the format sentence is added to questions that <boxes> answers only
        record["messages"][-2]["content"] += f" {FORMAT_SENTENCES[CODEC.syntax]}"
    record["objects"] = in_order(record, choose_order(rng, stage))["objects"]


def objects_of(scene: Scene, asked: list[str]) -> dict:
    """The objects of the classes asked for, in reading order."""
    kept = [i for i in raster_order(scene.boxes_xyxy) if scene.labels[i] in asked]
    return {
        "bbox": [scene.boxes_xyxy[i] for i in kept],
        "category": [scene.labels[i] for i in kept],
        "ignore": [False] * len(kept),
    }


# ---- short conversations: each returns (question, answer) -------------------------------------------------------------


def yes_no(value: bool) -> str:
    return YES if value else NO


def ask_class(rng: random.Random, scene: Scene) -> tuple[str, str]:
    alike = [name for theme in themes_of(scene.labels) for name in theme] or list(CLASSES)
    name = rng.choice(scene.labels if scene.labels and rng.random() < 0.5 else alike)
    return f"Is there a {name} in the image?", yes_no(name in scene.labels)


def ask_box(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Whether a box is that of an object: the object's own, slightly moved; another object's; or one anywhere."""
    i = rng.randrange(len(scene.labels))
    name, box_xyxy = scene.labels[i], scene.boxes_xyxy[i]
    chance = rng.random()
    if chance < 0.5:
        box_xyxy = moved(rng, scene, box_xyxy, 0.06)
    elif chance < 0.65:
        name = rng.choice([other for theme in themes_of([name]) for other in theme])
    else:
        box_xyxy = moved(rng, scene, box_xyxy, 0.8)
    right = any(
        label == name and box_iou([box_xyxy], [other])[0, 0] >= 0.5
        for label, other in zip(scene.labels, scene.boxes_xyxy, strict=True)
    )
    return box_question(name, written(scene, box_xyxy)), yes_no(right)


def describe_object(rng: random.Random, scene: Scene) -> tuple[str, str]:
    i = rng.randrange(len(scene.labels))
    x0, y0, x1, y1 = scene.boxes_xyxy[i]
    share = (x1 - x0) * (y1 - y0) / (scene.image.width * scene.image.height)
    extent = "small" if share < 0.04 else "large" if share > 0.2 else "medium"
    return f"Describe the object in the box {written(scene, scene.boxes_xyxy[i])}.", f"A {extent} {scene.labels[i]}."


def describe_scene(rng: random.Random, scene: Scene) -> tuple[str, str]:
    labels = [scene.labels[i] for i in raster_order(scene.boxes_xyxy)]
    counts = [f"{labels.count(name)} {name}" for name in dict.fromkeys(labels)]
    return "Describe the image.", f"{join_names(counts)}." if counts else "Nothing."


TALKERS = {
    "class": ask_class, "box": ask_box, "object caption": describe_object, "scene caption": describe_scene,
}  # fmt: skip


def moved(rng: random.Random, scene: Scene, box_xyxy: list[float], by: float) -> list[float]:
    """The box with each edge moved by up to `by` of the box's own side, inside the image."""
    x0, y0, x1, y1 = box_xyxy
    across, down = by * (x1 - x0), by * (y1 - y0)
    right, below = rng.uniform(-across, across), rng.uniform(-down, down)
    made = [
        x0 + right + rng.uniform(-0.3, 0.3) * across,
        y0 + below + rng.uniform(-0.3, 0.3) * down,
        x1 + right + rng.uniform(-0.3, 0.3) * across,
        y1 + below + rng.uniform(-0.3, 0.3) * down,
    ]
    width, height = scene.image.size
    x0, x1 = (min(max(v, 0), width) for v in made[::2])
    y0, y1 = (min(max(v, 0), height) for v in made[1::2])
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]


def written(scene: Scene, box_xyxy: list[float]) -> list[int]:
    """The coordinates of the box as the codec writes them."""
    size = (scene.image.height, scene.image.width)
    return CODEC.frame.box_to_steps(box_xyxy, size, size)[0]
