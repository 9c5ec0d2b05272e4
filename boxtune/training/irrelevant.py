"""The recipe keys `irrelevant_images` and `irrelevant_share`: training examples whose image has nothing to do with the data."""

import dataclasses
import random
from pathlib import Path

from accelerate import PartialState

from boxtune.answers.irrelevant import irrelevant_record
from boxtune.batching.encoder import Encoder
from boxtune.common.errors import UserError
from boxtune.data.questions import answer_category
from boxtune.data.records import Record
from boxtune.data.unrelated_images import GENERATED, UnrelatedImage, unrelated_images
from boxtune.training.console import say
from boxtune.training.recipe import Recipe

# Drawn images, which a run saves in this folder. With more examples, they are used several times.
FOLDER, MOST_DRAWN = "irrelevant_images", 500


def with_irrelevant(recipe: Recipe, records: list[Record], encoder: Encoder) -> list[Record]:
    """The training records and, if the recipe has `irrelevant_images`, examples that make up `irrelevant_share` of all.

    Each asks a question of a drawn record about an image of the folder. Drawn images are saved in the run's folder.
    Raises UserError if the folder cannot be used, or if no record asks for boxes.
    """
    options = recipe.options
    if not options.irrelevant_images:
        return records
    asking = [record for record in records if answer_category(record["messages"][1]["content"])[0]]
    if not asking:
        raise UserError(
            "irrelevant_images: no training example asks for boxes, so there is no question to ask. Omit it."
        )
    share = options.irrelevant_share
    count = max(1, round(len(records) * share / (1 - share)))
    images = _images(options.irrelevant_images, count, Path(recipe.training.output_dir), recipe.training.seed)
    rng = random.Random(f"{recipe.training.seed} irrelevant")
    wording = options.irrelevant_answer, encoder.format_sentence
    added = [irrelevant_record(images[i % len(images)], rng.choice(asking), i, *wording) for i in range(count)]
    say(
        f"irrelevant_images: {count} examples with {min(count, len(images))} images of {options.irrelevant_images} added to "
        f"{len(records)} training examples"
    )
    return [*records, *added]


def _images(source: str, count: int, output_dir: Path, seed: int) -> list[UnrelatedImage]:
    """At most `count` images that are files."""
    images = unrelated_images(source, min(count, MOST_DRAWN) if source == GENERATED else count, f"training {seed}")
    return _saved(images, output_dir / FOLDER) if source == GENERATED else images


def _saved(images: list[UnrelatedImage], folder: Path) -> list[UnrelatedImage]:
    """Drawn images as files, which the workers of the data loader read."""
    with PartialState().main_process_first():
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{image.name.replace('/', ' ')}.png" for image in images]
        for image, path in zip(images, paths, strict=True):
            if not path.is_file():
                image.open().save(path)
    return [dataclasses.replace(image, path=str(path.resolve())) for image, path in zip(images, paths, strict=True)]
