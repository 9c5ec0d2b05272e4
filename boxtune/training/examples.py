"""The examples of a run: records in the recipe's order, and which of them fit max_length."""

from dataclasses import dataclass
from pathlib import Path

from boxtune.batching.encoder import Encoder
from boxtune.batching.lengths import (
    Lengths,
    answer_budget,
    describe_overlong,
    measure,
    overlong,
    overlong_remedy,
    with_teachers,
)
from boxtune.common.errors import UserError
from boxtune.common.problems import list_problems
from boxtune.data.archives import is_member
from boxtune.data.dataset import read_splits
from boxtune.data.record_checks import caption_problem
from boxtune.data.records import CAPTION, Record, answer_captions, fixed_sample, image_path, in_order, object_columns
from boxtune.data.shards import Shards, read_shards
from boxtune.data.tiles import tile_of, training_views
from boxtune.training.console import say
from boxtune.training.recipe import Recipe
from boxtune.training.sharded import require_shardable, sample

Splits = dict[str, list[Record]]


@dataclass(frozen=True)
class Examples:
    """The records that fit max_length, by split. `max_new_tokens`: a generation limit that fits every target response.

    lengths: the most tokens that each training example may have.
    """

    splits: Splits
    max_new_tokens: int
    lengths: list[int]


def open_examples(recipe: Recipe) -> tuple[Splits, Shards | None]:
    """The `read_examples` of a recipe, and its training records if they are in shards.

    Raises UserError as `read_examples` does, or if the recipe cannot be trained from shards.
    """
    options, data_dir = recipe.options, Path(recipe.options.data_dir)
    shards = read_shards(data_dir)
    if shards:
        require_shardable(recipe)
    order, captions = options.object_order, options.captions
    return read_examples(data_dir, order, options.tiles, captions, options.train_images, shards), shards


def read_examples(
    data_dir: Path,
    object_order: str,
    tiles: int = 0,
    captions: bool = False,
    train_images: int = 0,
    shards: Shards | None = None,
) -> Splits:
    """The records of train and, if it exists, validation; with `tiles`, train has the tiles of its images, too.

    train_images: if it is not 0, train is a fixed random sample of at most this many images. shards: the training records, if
    they are in shards; train is then a sample of them.

    Raises UserError if train is empty, images are missing or, with `captions`, objects' captions cannot be used.
    """
    if shards:
        splits = {"train": sample(shards), **read_splits(data_dir, ("validation",))}
    else:
        splits = read_splits(data_dir, ("train", "validation"))
    if train_images and splits.get("train"):
        splits["train"] = fixed_sample(splits["train"], train_images)
    if tiles and splits.get("train"):
        splits["train"] = _with_tiles(splits["train"], tiles)
    splits = {split: [in_order(record, object_order) for record in records] for split, records in splits.items()}
    if not splits.get("train"):
        raise UserError(f"{data_dir} has no training images.")
    if captions:
        _require_captions(splits)
    paths = [image_path(record, data_dir) for records in splits.values() for record in records]
    if missing := [str(path) for path in paths if not is_member(path) and not path.is_file()]:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing. Prepare the data again:", missing)
    return splits


def _require_captions(splits: Splits) -> None:
    """Raises UserError if a caption cannot be written into an answer, or if no object of train has one."""
    columns = [object_columns(record["objects"]).get(CAPTION, []) for records in splits.values() for record in records]
    if problems := sorted(
        {problem for column in columns for caption in column if (problem := caption_problem(caption))}
    ):
        raise UserError("captions: these cannot be written into an answer:", problems)
    if not any(caption for record in splits["train"] for caption in answer_captions(record)):
        raise UserError(
            "captions: no object of the training images has one. Give each object a text in the column `caption` of `objects`, "
            "or omit captions."
        )


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


def fit_lengths(recipe: Recipe, splits: Splits, encoder: Encoder, can_drop: bool = True) -> Examples:
    """The examples within max_length; no example is ever truncated. can_drop: whether longer ones can be left out.

    Raises UserError that lists all longer examples, unless the recipe has `overlong: drop`.
    """
    limit = recipe.training.max_length
    lengths = measure_splits(splits, encoder, recipe.options.noise_objects)
    fitting = {split: _drop_overlong(recipe, split, splits[split], lengths[split], can_drop) for split in splits}
    if recipe.options.teacher_ratio:
        lengths["train"] = longest_with_teachers(recipe, _lengths_of(fitting["train"], lengths["train"]))
        fitting["train"] = _drop_overlong(recipe, "train", fitting["train"], lengths["train"])
    training = _lengths_of(fitting["train"], lengths["train"])
    say(
        f"tokens: longest example {max(entry.total for entry in training)} of max_length {limit}, "
        f"longest response {max(entry.answer for entry in training)}; "
        f"{sum(entry.widened for entry in training)} boxes widened to one coordinate step"
    )
    return Examples(fitting, answer_budget(training), [entry.total for entry in training])


def longest_with_teachers(recipe: Recipe, lengths: list[Lengths]) -> list[Lengths]:
    """The lengths of training examples with the longest teachers that the recipe may draw."""
    options = recipe.options
    return with_teachers(lengths, options.num_teacher_samples) if options.teacher_ratio else lengths


def _lengths_of(records: list[Record], lengths: list[Lengths]) -> list[Lengths]:
    """Those of the lengths that belong to `records`."""
    kept = {record["id"] for record in records}
    return [entry for entry in lengths if entry.id in kept]


def _drop_overlong(
    recipe: Recipe, split: str, records: list[Record], lengths: list[Lengths], can_drop: bool = True
) -> list[Record]:
    limit = recipe.training.max_length
    noise_objects = recipe.options.noise_objects if split == "train" else 0.0
    too_long = overlong(lengths, limit)
    if too_long and recipe.options.overlong == "error":
        raise UserError(
            f"{len(too_long)} of {len(records)} {split} examples exceed max_length {limit}; "
            f"{overlong_remedy(too_long, noise_objects, can_drop)}:",
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
