"""Variation of training examples between epochs: another version of the image, another question, noise objects.

All random choices depend only on the recipe's seed, the epoch and the record's id. They are therefore the same for any number
of workers and processes, and when an interrupted run is resumed.
"""

import random
from dataclasses import dataclass, field

import torch
from PIL import Image

from boxtune.answers.noise import with_noise
from boxtune.batching.augmentation import augment
from boxtune.batching.hard_negatives import Confused, mistake_weight
from boxtune.data.questions import QUESTIONS, Descriptions, first_question, is_standard, question
from boxtune.data.records import Record, in_order, with_objects

# With `prompt_variety`, the share of examples that keep the record's own wording, which evaluation uses.
OWN_WORDING = 0.5


def epoch_zero() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()


@dataclass
class Variation:
    """How training examples vary.

    operations, negative_questions, prompt_variety, noise_objects: the recipe's keys (`operations` is `augment`).
    object_order, max_length, seed: the recipe's. A varied example that exceeds max_length is not used.
    classes, descriptions: those of the dataset. max_pixels: area of the largest resized input.
    confused: what an earlier model mistook for what; with it, `negative_questions` ask for such classes more often.
    epoch: the current epoch, in shared memory, because workers of the data loader may live longer than one epoch.
    """

    operations: list[str]
    negative_questions: float
    prompt_variety: bool
    noise_objects: float
    object_order: str
    classes: list[str]
    max_pixels: int
    max_length: int | None
    seed: int
    descriptions: Descriptions = field(default_factory=dict)
    confused: Confused | None = None
    epoch: torch.Tensor = field(default_factory=epoch_zero)

    def __call__(self, record: Record, image: Image.Image) -> tuple[Record, Image.Image]:
        """(record, RGB image) as varied in the current epoch."""
        draw = random.Random(f"{self.seed} {self.epoch.item()} {record['id']}")
        if self.operations:
            record, image = augment(record, image, self.operations, self.max_pixels, draw)
            # A flip or crop can change the raster order and the order by area. The random order is drawn once and kept.
            if self.object_order != "random":
                record = in_order(record, self.object_order)
        if is_standard(record):
            record = with_noise(self._with_question(record, draw), self.noise_objects, draw)
        return record, image

    def _with_question(self, record: Record, draw: random.Random) -> Record:
        """The record with a question that may be limited to one class, and may use another wording."""
        category = self._draw_category(record, draw)
        other_wording = self.prompt_variety and draw.random() >= OWN_WORDING
        if category is None and not other_wording:
            return record
        wording = draw.choice(QUESTIONS) if other_wording else QUESTIONS[0]
        if category is not None:
            positions = [i for i, label in enumerate(record["objects"]["category"]) if label == category]
            record = with_objects(record, positions)
        text = question(self.classes if category is None else [category], wording, self.descriptions)
        return record | {"messages": [{"role": "user", "content": text}, *record["messages"][1:]]}

    def _draw_category(self, record: Record, draw: random.Random) -> str | None:
        """The one class to ask for, or None for all classes.

        The share `negative_questions` of the examples asks for a class that is not in the image. An equal share asks for one
        that is, because otherwise the model would learn that a question about one class means there is none.
        """
        chance = draw.random()
        if chance >= 2 * self.negative_questions or len(self.classes) <= 1:
            return None
        objects = record["objects"]
        if chance < self.negative_questions:
            candidates = [name for name in self.classes if name not in objects["category"]]
            if candidates and self.confused is not None:
                weights = [mistake_weight(self.confused, name, set(objects["category"])) for name in candidates]
                return draw.choices(candidates, weights)[0]
        else:
            pairs = zip(objects["category"], objects["ignore"], strict=True)
            present = {name for name, ignored in pairs if not ignored}
            candidates = [name for name in self.classes if name in present]
        return draw.choice(candidates) if candidates else None

    def questions(self, records: list[Record]) -> list[str]:
        """Every question that training on `records` may ask: the records' own first, then the drawn ones, each sorted."""
        own = sorted({first_question(record) for record in records})
        if not any(map(is_standard, records)):
            return own
        groups = [self.classes] if self.prompt_variety else []
        if self.negative_questions and len(self.classes) > 1:
            groups += [[name] for name in self.classes]
        wordings = QUESTIONS if self.prompt_variety else QUESTIONS[:1]
        drawn = {question(group, wording, self.descriptions) for group in groups for wording in wordings}
        return own + sorted(drawn - set(own))
