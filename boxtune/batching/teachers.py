"""Few-shot training: other training examples, the teachers, that precede an example's own question in its conversation.

Each teacher is a record of its own, with its image, its questions and its answers, as the data has it: it is not varied. Which
ones are drawn depends only on the recipe's seed, the epoch and the record's id, as in variation.py.
"""

import random
from dataclasses import dataclass, field

import torch

from boxtune.batching.variation import epoch_zero
from boxtune.data.records import Record
from boxtune.data.tiles import whole_of


@dataclass
class Teachers:
    """Draws the teachers of training examples.

    pool: the records to draw from, whole images. ratio: the share of examples that get teachers. samples: how many each of them
    gets; the pool must hold one more. seed: the recipe's. epoch: the current epoch, in shared memory as in Variation.
    """

    pool: list[Record]
    ratio: float
    samples: int
    seed: int
    epoch: torch.Tensor = field(default_factory=epoch_zero)

    def __call__(self, record: Record) -> Record:
        """The record, perhaps with teachers (`taught_by`), never with its own image among them."""
        # A generator of its own, so that variation draws what it would draw without teachers.
        draw = random.Random(f"{self.seed} {self.epoch.item()} {record['id']} teachers")
        if draw.random() >= self.ratio:
            return record
        own = whole_of(record)["id"]
        drawn = [teacher for teacher in draw.sample(self.pool, self.samples + 1) if teacher["id"] != own]
        return record | {"taught_by": drawn[: self.samples]}

    def fixed(self) -> list[Record]:
        """As many teachers as an example gets, for prompts of evaluation; images with objects come first."""
        shuffled = random.Random(f"{self.seed} fixed teachers").sample(self.pool, len(self.pool))
        return sorted(shuffled, key=lambda record: all(record["objects"]["ignore"]))[: self.samples]
