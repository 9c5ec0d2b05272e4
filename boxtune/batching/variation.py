"""How an example of training differs from one epoch to the next: another picture of the same objects, another question.

What is drawn depends on the recipe's seed, the epoch and the record's id alone, so that it is the same for any number of
workers and processes, and after an interruption.
"""

import random
from dataclasses import dataclass, field

import torch
from PIL import Image

from boxtune.answers.noise import with_noise
from boxtune.batching.augmentation import augment
from boxtune.data.questions import QUESTIONS, first_question, is_standard, question
from boxtune.data.records import Record, in_order, with_objects

# With `prompt_variety`, the share of examples that keep the record's own words, which evaluation will use.
OWN_WORDS = 0.5


def _epoch_zero() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64).share_memory_()


@dataclass
class Variation:
    """The recipe's keys `augment`, `negative_questions`, `prompt_variety` and `noise_objects`, and what they need to know.

    `object_order` and `max_length` are the recipe's; no varied example may exceed the latter. `classes` are the data set's,
    `max_pixels` is the area of the largest input. `epoch` lies in shared memory, because workers of the data loader may
    outlive an epoch.
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
    epoch: torch.Tensor = field(default_factory=_epoch_zero)

    def __call__(self, record: Record, image: Image.Image) -> tuple[Record, Image.Image]:
        """The example as this epoch shows it: (record, RGB picture)."""
        draw = random.Random(f"{self.seed} {self.epoch.item()} {record['id']}")
        if self.operations:
            record, image = augment(record, image, self.operations, self.max_pixels, draw)
            if self.object_order != "random":  # which is drawn once, and this would be again
                record = in_order(record, self.object_order)  # a flip reverses a line, a cut makes a large object small
        if is_standard(record):
            record = with_noise(self._ask(record, draw), self.noise_objects, draw)
        return record, image

    def _ask(self, record: Record, draw: random.Random) -> Record:
        """The record, perhaps about one class alone, perhaps in other words.

        A share `negative_questions` asks for a class that the picture lacks, and as large a share for one that it shows,
        lest a question about one class come to mean that there is none.
        """
        objects, chance = record["objects"], draw.random()
        asked = None
        if chance < 2 * self.negative_questions and len(self.classes) > 1:
            shown = [name for name, ignored in zip(objects["category"], objects["ignore"], strict=True) if not ignored]
            wanted = set(self.classes) - set(objects["category"]) if chance < self.negative_questions else set(shown)
            if candidates := [name for name in self.classes if name in wanted]:
                asked = draw.choice(candidates)
        other_words = self.prompt_variety and draw.random() >= OWN_WORDS
        if asked is None and not other_words:
            return record
        wording = draw.choice(QUESTIONS) if other_words else QUESTIONS[0]
        if asked is not None:
            kept = [i for i, name in enumerate(objects["category"]) if name == asked]
            record = with_objects(record, kept)
        asks = {"role": "user", "content": question(self.classes if asked is None else [asked], wording)}
        return record | {"messages": [asks, *record["messages"][1:]]}

    def questions(self, records: list[Record]) -> list[str]:
        """Every question that training on `records` may ask: their own first, then those that are drawn."""
        own = sorted({first_question(record) for record in records})
        if not any(map(is_standard, records)):
            return own
        single = self.negative_questions and len(self.classes) > 1
        groups = ([self.classes] if self.prompt_variety else []) + ([[name] for name in self.classes] if single else [])
        wordings = QUESTIONS if self.prompt_variety else QUESTIONS[:1]
        drawn = {question(group, wording) for group in groups for wording in wordings}
        return own + sorted(drawn - set(own))
