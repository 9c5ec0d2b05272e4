"""Assigns ids to the images of a source and decodes each image once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from boxtune.common.errors import UserError
from boxtune.data.image_checks import BadImage, ImageFacts, check_images
from data_prep.pipeline.image_ids import assign_ids
from data_prep.pipeline.splits import choose_entries
from data_prep.reading.encodings import name_faults
from data_prep.reading.source import Entry, Item, Options, Source, problem
from data_prep.reading.spool import Spool

# How many bad images are listed if no image can be read.
MAX_LISTED = 5
NAME_FOLDER = "If the images are in another folder, name it with --images."


class Inspected(NamedTuple):
    """An item with its final name and split, its id, and the facts of its image."""

    id: str
    item: Item
    facts: ImageFacts


@dataclass
class Inspection:
    """The images of a source after decoding, in the order of their ids.

    images: the readable ones. bad_images: {id: reason} of the others, which abort the conversion; empty with
    --skip-bad-images, which lists them in `problems` instead. categories: {category as the source writes it: the first
    id that has it}. name_errors: names that cannot be used.
    """

    images: Spool[Inspected]
    bad_images: dict[str, BadImage] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    name_errors: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def inspect_items(found: Source, options: Options) -> Inspection:
    """Decode all images that belong to a split.

    Raises UserError if --skip-bad-images would leave no image.
    """
    entries = [Entry(number, item.name, item.image_path, item.split) for number, item in enumerate(found.items)]
    chosen = choose_entries(entries, by_folders=options.split_ratio is None)
    ids = assign_ids(chosen.entries)
    inspection = Inspection(
        Spool(options.scratch),
        name_errors=ids.errors,
        problems=[*chosen.problems, *found.problems],
        warnings=chosen.warnings,
    )
    folders_of_missing: set[Path] = set()
    results = check_images([entry.image_path for entry in ids.entries.values()], options.workers)
    for (item_id, entry), result in zip(ids.entries.items(), results, strict=True):
        if isinstance(result, BadImage):
            inspection.bad_images[item_id] = result
            if result.missing:
                folders_of_missing.add(Path(entry.image_path).parent)
            if options.skip_bad_images:
                continue
        item = found.items[entry.number]
        for row in item.rows:
            if not row.every_class:
                inspection.categories.setdefault(row.category, item_id)
        if isinstance(result, ImageFacts):
            item.name, item.split = entry.name, entry.split
            inspection.images.append(Inspected(item_id, item, result))
    notes = inspection.warnings if options.skip_bad_images else inspection.name_errors
    notes += name_faults(folders_of_missing)
    if options.skip_bad_images:
        _skip_bad_images(inspection, options)
    return inspection


def _skip_bad_images(inspection: Inspection, options: Options) -> None:
    """Turn bad images from errors into problems. Raises UserError if no image would be left."""
    bad_images = inspection.bad_images
    if bad_images and not inspection.images:
        hint = f"{NAME_FOLDER} " if folder_may_help(bad_images, options) else ""
        raise UserError(
            f"All {len(bad_images)} images are bad, so none is left. {hint}The first of them:",
            [image.reason for image in bad_images.values()][:MAX_LISTED],
        )
    inspection.problems += [
        problem(item_id, "bad_image", image.reason, "image left out") for item_id, image in bad_images.items()
    ]
    inspection.bad_images = {}


def folder_may_help(bad_images: dict[str, BadImage], options: Options) -> bool:
    """Whether --images could help: files are missing, and the option was not given."""
    return options.images is None and any(image.missing for image in bad_images.values())
