"""Training from a dataset in shards: what the recipe must not ask for, the rows, and the order in which they are read."""

from collections.abc import Iterator
from functools import partial

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from boxtune.batching.encoder import Encoder
from boxtune.batching.lengths import as_row, describe_overlong, measure, overlong, overlong_remedy
from boxtune.batching.variation import epoch_zero
from boxtune.common.errors import UserError
from boxtune.data.records import Record, in_order
from boxtune.data.shards import Shards
from boxtune.training.recipe import Recipe

# Training examples whose lengths, sizes and questions are read before training, in place of those of all.
SAMPLE = 1000


def require_shardable(recipe: Recipe) -> None:
    """Raises UserError if the recipe has keys for which all training records would have to be in memory."""
    options, training = recipe.options, recipe.training
    asked = {
        "tiles": options.tiles,
        "train_images": options.train_images,
        "teacher_ratio": options.teacher_ratio,
        "irrelevant_images": options.irrelevant_images,
        "tokens_per_batch": options.tokens_per_batch,
        "overlong: drop": options.overlong == "drop",
        "train_sampling_strategy: group_by_length": training.train_sampling_strategy == "group_by_length",
    }
    if found := [key for key, value in asked.items() if value]:
        raise UserError(
            "this dataset is in shards. These keys need all training records in memory; omit them, or train on the dataset that "
            "the shards were made from:",
            found,
        )


def sample(shards: Shards) -> list[Record]:
    """The first training records. The archives are random, so they are a random sample."""
    return [shards[number] for number in range(min(SAMPLE, len(shards)))]


def sharded_dataset(recipe: Recipe, shards: Shards, encoder: Encoder) -> Dataset:
    """The rows of `lengths.as_dataset` for training, each read from its archive when it is used.

    Raises UserError then, if an example exceeds max_length.
    """
    # A partial and not a closure, because workers that are not forked receive it pickled.
    read = partial(
        _read_rows,
        shards=shards,
        encoder=encoder,
        object_order=recipe.options.object_order,
        noise_objects=recipe.options.noise_objects,
        max_length=recipe.training.max_length,
    )
    return Dataset.from_dict({"number": range(len(shards))}).with_transform(read)


def _read_rows(
    columns: dict[str, list],
    shards: Shards,
    encoder: Encoder,
    object_order: str,
    noise_objects: float,
    max_length: int | None,
) -> dict[str, list]:
    records = [in_order(shards[number], object_order) for number in columns["number"]]
    lengths = [] if max_length is None else measure(records, encoder, noise_objects)
    if too_long := overlong(lengths, max_length):
        remedy = overlong_remedy(too_long, noise_objects, can_drop=False)
        raise UserError(f"examples exceed max_length {max_length}; {remedy}, and resume:", describe_overlong(too_long))
    rows = [as_row(record, shards.directory, varied=True) for record in records]
    return {key: [row[key] for row in rows] for key in rows[0]}


class ShardBatches(Sampler[list[int]]):
    """A batch sampler that reads one archive after the other. Its order depends only on seed and epoch, so a run can be resumed.

    Each epoch leaves out the last images of its order that do not fill a batch in each of the `processes`.
    """

    def __init__(self, shards: Shards, size: int, seed: int, processes: int = 1):
        self.shards, self.size, self.seed = shards, size, seed
        self.epoch: torch.Tensor = epoch_zero()
        self.count = len(shards) // (size * processes) * processes
        if not self.count:
            raise UserError(
                f"{shards.directory} has {len(shards)} training images, fewer than the {size * processes} of one batch in each "
                "process. Lower per_device_train_batch_size."
            )

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        order = self.shards.order(self.seed, int(self.epoch))
        for _ in range(self.count):
            yield [next(order) for _ in range(self.size)]
