"""Which examples go into one micro-batch: as many as fit a limit, chosen by length so that little of it stays empty."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Sampler

from boxtune.batching.variation import epoch_zero

# Batches are filled from this many examples that follow each other in the shuffled order. More would fill them better, but
# fewer keep the order random, and filling takes time in proportion to it.
WINDOW = 512


@dataclass(frozen=True)
class Limit:
    """What one micro-batch may hold: at most so many `examples`, or at most so many `tokens`.

    Padding counts as tokens unless the batch is `packed`.
    """

    examples: int | None = None
    tokens: int | None = None
    packed: bool = False

    def allows(self, examples: int, longest: int, total: int) -> bool:
        """Whether a batch may have this many examples, whose lengths have this maximum and sum."""
        if self.tokens is None:
            return examples <= self.examples
        return (total if self.packed else examples * longest) <= self.tokens


@dataclass
class _Batch:
    """rows: positions of examples, the longest first. longest, total: maximum and sum of their lengths."""

    longest: int
    total: int = 0
    rows: list[int] = field(default_factory=list)


def fill(rows: Sequence[int], lengths: Sequence[int], limit: Limit) -> list[list[int]]:
    """First-fit-decreasing: the rows by falling length, each in the first batch that has room for it.

    A row that exceeds the limit is a batch by itself. Where padding counts, this makes batches of similar lengths.
    """
    batches: list[_Batch] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):  # rows of equal length stay in their order
        length = lengths[row]
        fitting = (b for b in batches if limit.allows(len(b.rows) + 1, b.longest, b.total + length))
        batch = next(fitting, None)
        if batch is None:
            batch = _Batch(longest=length)
            batches.append(batch)
        batch.rows.append(row)
        batch.total += length
    return [batch.rows for batch in batches]


def plan(lengths: Sequence[int], limit: Limit, seed: int, epoch: int, least: int = 0) -> list[list[int]]:
    """The micro-batches of an epoch in random order; each row is in exactly one. lengths: those of all rows.

    least: at least so many batches, if there are enough rows: the largest batches are divided until there are.
    """
    draw = random.Random(f"{seed} {epoch} batches")
    order = draw.sample(range(len(lengths)), len(lengths))
    # Whole batches of examples, so that every epoch has the same number of them.
    window = max(1, WINDOW // limit.examples) * limit.examples if limit.examples else WINDOW
    batches = [batch for at in range(0, len(order), window) for batch in fill(order[at : at + window], lengths, limit)]
    while len(batches) < min(least, len(order)):
        largest = max(batches, key=len)
        batches.remove(largest)
        middle = len(largest) // 2
        batches += [largest[:middle], largest[middle:]]
    draw.shuffle(batches)
    return batches


class PlannedBatches(Sampler[list[int]]):
    """A batch sampler with the `plan` of the current epoch. It depends only on the seed and the epoch, so a run can be resumed.

    The number of batches is the same in each epoch, because the trainer asks for it once: it is the largest of all `epochs`,
    rounded up so that all `processes` get equally many. epoch: the current epoch, as in Variation.
    """

    def __init__(self, lengths: Sequence[int], limit: Limit, seed: int, epochs: int, processes: int = 1):
        self.lengths, self.limit, self.seed = lengths, limit, seed
        self.epoch: torch.Tensor = epoch_zero()
        most = max(len(plan(lengths, limit, seed, epoch)) for epoch in range(epochs))
        self.count = len(plan(lengths, limit, seed, 0, least=-(-most // processes) * processes))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        return iter(plan(self.lengths, self.limit, self.seed, int(self.epoch), least=self.count))


def random_batches(rows: int, size: int, seed: int) -> list[list[int]]:
    """Random batches of `size` rows, such as those of a trainer that draws them without regard to length."""
    order = random.Random(seed).sample(range(rows), rows)
    return [order[at : at + size] for at in range(0, rows, size)]


def padding_share(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """The fraction of the positions of padded batches that hold padding."""
    positions = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / positions
