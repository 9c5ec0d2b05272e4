"""What the probes of a suite ask about: some of the user's images, unrelated ones, and the base to compare with."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from boxtune.batching.collator import DetectionCollator
from boxtune.data.questions import IMAGE, answer_category, as_asked
from boxtune.data.records import Message, Record, with_objects
from boxtune.data.unrelated_images import UnrelatedImage, unrelated_images
from boxtune.inference.guardrail_suite import Suite
from boxtune.inference.probes.subject import Shown, Subject

PREFIX = "unrelated"


@dataclass(frozen=True)
class Material:
    """suite: what was asked for. classes: those of training.

    own: images of the user with objects, asked for boxes. records: these and images without objects. unrelated: images that
    have nothing to do with the classes, asked as the user's images are. base: the model without its adapter; None if there is
    none.
    """

    suite: Suite
    classes: list[str]
    own: list[Shown]
    records: list[Shown]
    unrelated: list[Shown]
    base: Subject | None


def make_material(suite: Suite, collator: DetectionCollator, records: list[Record], base: Subject | None) -> Material:
    """A fixed choice, by the seed of the suite."""
    asked = [as_asked(record) for record in records if answer_category(record["messages"][1]["content"])[0]]
    with_boxes = [record for record in asked if not all(record["objects"]["ignore"])]
    own = _sample(with_boxes, suite.images, suite.seed)
    others = [record for record in asked if all(record["objects"]["ignore"])]
    shown = [_shown(record, collator) for record in [*own, *_sample(others, suite.images, suite.seed)]]
    images = unrelated_images(suite.unrelated_images, suite.unrelated_count, f"guardrails {suite.seed}")
    return Material(
        suite=suite,
        classes=collator.grounding.classes,
        own=shown[: len(own)],
        records=shown,
        unrelated=[asked_like(image, shown[i % len(shown)].record) for i, image in enumerate(images)] if shown else [],
        base=base,
    )


def _sample(records: list[Record], count: int, seed: int) -> list[Record]:
    return random.Random(seed).sample(records, min(count, len(records)))


def _shown(record: Record, collator: DetectionCollator) -> Shown:
    return Shown(record, lambda: collator.load(record))


def asked_like(image: UnrelatedImage, like: Record) -> Shown:
    """The image, asked the question of the record `like`."""
    record: Record = {
        "id": f"{PREFIX}/{image.name}",
        "image": image.path,
        "width": image.size[0],
        "height": image.size[1],
        "objects": {"bbox": [], "category": [], "ignore": []},
        "messages": like["messages"],
    }
    return Shown(record, image.open)


def asking(shown: Shown, text: str, name: str) -> Shown:
    """The same image with a question that is answered in words. `name` is added to the id."""
    turns: list[Message] = [{"role": "user", "content": IMAGE + text}, {"role": "assistant", "content": ""}]
    return Shown(with_objects(shown.record, []) | {"id": f"{shown.id}/{name}", "messages": turns}, shown.open)


def with_image(shown: Shown, open_image: Callable[[], Image.Image], size: tuple[int, int], name: str) -> Shown:
    """The same question about another image of (width, height) `size`. `name` is added to the id."""
    changed = with_objects(shown.record, []) | {"id": f"{shown.id}/{name}", "width": size[0], "height": size[1]}
    return Shown(changed, open_image)


def captions_of(material: Material) -> tuple[list[Shown], list[Shown]]:
    """(the user's images, the unrelated ones), asked for a description."""
    prompt = material.suite.caption_prompt
    own, unrelated = (
        [asking(one, prompt, "caption") for one in images] for images in (material.own, material.unrelated)
    )
    return own, unrelated
