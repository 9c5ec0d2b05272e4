"""The examples of a run: records in the recipe's order, and which of them fit max_length."""

from dataclasses import dataclass
from pathlib import Path

from boxtune.batching.encoder import Encoder
from boxtune.batching.lengths import Lengths, answer_budget, describe_overlong, measure, overlong, overlong_remedy
from boxtune.common.errors import UserError
from boxtune.common.problems import list_problems
from boxtune.data.dataset import read_splits
from boxtune.data.records import Record, image_path, in_order
from boxtune.data.tiles import tile_of, training_views
from boxtune.training.console import say
from boxtune.training.recipe import Recipe

Splits = dict[str, list[Record]]


@dataclass(frozen=True)
class Examples:
    """The records that fit max_length, by split. `max_new_tokens`: a generation limit that fits every target response."""

    splits: Splits
    max_new_tokens: int


def read_examples(data_dir: Path, object_order: str, tiles: int = 0) -> Splits:
    """The records of train and, if it exists, validation; with `tiles`, train has the tiles of its images, too.

    Raises UserError if train is empty or images are missing.
    """
    splits = read_splits(data_dir, ("train", "validation"))
    if tiles and splits.get("train"):
        splits["train"] = _with_tiles(splits["train"], tiles)
    splits = {split: [in_order(record, object_order) for record in records] for split, records in splits.items()}
    if not splits.get("train"):
        raise UserError(f"{data_dir} has no training images.")
    paths = [image_path(record, data_dir) for records in splits.values() for record in records]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing. Prepare the data again:", missing)
    return splits


def _with_tiles(records: list[Record], side: int) -> list[Record]:
    views = [view for record in records for view in training_views(record, side)]
    found = [view for view in views if tile_of(view)]
    empty = sum(all(view["objects"]["ignore"]) for view in found)
    say(
        f"tiles: {len(records)} training images give {len(views)} examples: {len(views) - len(found)} whole images and "
        f"{len(found)} tiles, of which {empty} contain no object"
    )
    return views


def measure_splits(splits: Splits, encoder: Encoder, noise_objects: float) -> dict[str, list[Lengths]]:
    """{split: token counts of its records}. Only training examples get noise objects."""
    noise = {"train": noise_objects}
    return {split: measure(records, encoder, noise.get(split, 0.0)) for split, records in splits.items()}


def fit_lengths(recipe: Recipe, splits: Splits, encoder: Encoder) -> Examples:
    """The examples within max_length; no example is ever truncated.

    Raises UserError that lists all longer examples, unless the recipe has `overlong: drop`.
    """
    limit = recipe.training.max_length
    lengths = measure_splits(splits, encoder, recipe.options.noise_objects)
    fitting = {split: _drop_overlong(recipe, split, splits[split], lengths[split]) for split in splits}
    kept = {record["id"] for record in fitting["train"]}
    training = [entry for entry in lengths["train"] if entry.id in kept]
    say(
        f"tokens: longest example {max(entry.total for entry in training)} of max_length {limit}, "
        f"longest response {max(entry.answer for entry in training)}; "
        f"{sum(entry.widened for entry in training)} boxes widened to one coordinate step"
    )
    return Examples(fitting, answer_budget(training))


def _drop_overlong(recipe: Recipe, split: str, records: list[Record], lengths: list[Lengths]) -> list[Record]:
    limit = recipe.training.max_length
    noise_objects = recipe.options.noise_objects if split == "train" else 0.0
    too_long = overlong(lengths, limit)
    if too_long and recipe.options.overlong == "error":
        raise UserError(
            f"{len(too_long)} of {len(records)} {split} examples exceed max_length {limit}; "
            f"{overlong_remedy(too_long, noise_objects)}:",
            describe_overlong(too_long),
        )
    if too_long:
        say(f"dropped from {split}, because they exceed max_length {limit}: {len(too_long)} of {len(records)} examples")
        say("\n".join(list_problems(describe_overlong(too_long))))
    dropped = {entry.id for entry in too_long}
    fitting = [record for record in records if record["id"] not in dropped]
    if records and not fitting:
        raise UserError(f"no {split} example fits max_length {limit}. Raise max_length or lower max_pixels.")
    return fitting
