"""The steps of every conversion, from a source to a prepared dataset."""

import heapq
import sys
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.problems import join_names, list_problems
from boxtune.data.dataset import check_writable_target, write_dataset
from boxtune.data.records import Record, answer_objects
from data_prep.formats import FORMATS
from data_prep.pipeline.check_convention import check_convention
from data_prep.pipeline.classes import choose_classes, keep_classes
from data_prep.pipeline.dataset_warnings import (
    class_warnings,
    duplicate_warnings,
    empty_image_warnings,
    evaluation_warnings,
    problem_warnings,
    rotation_line,
    thousandths_warnings,
    untrained_warnings,
)
from data_prep.pipeline.format_options import check_format_options
from data_prep.pipeline.guess_convention import find_convention
from data_prep.pipeline.inspect_images import MAX_LISTED, NAME_FOLDER, Inspection, folder_may_help, inspect_items
from data_prep.pipeline.layouts import Convention
from data_prep.pipeline.make_records import make_records, staged_images
from data_prep.pipeline.place import PlacedImage, place_objects
from data_prep.pipeline.recognise import recognise
from data_prep.pipeline.splits import divide
from data_prep.pipeline.summary import print_summary
from data_prep.pipeline.totals import BoxTotals, ImageTotals
from data_prep.reading.source import Options, Source
from data_prep.reading.spool import Spool


def convert(format_name: str, source: Path, options: Options) -> None:
    """Convert SOURCE into a prepared dataset at `options.out`, and print what it contains.

    `format_name` is a key of FORMATS, or "auto" to recognize the format. `options.scratch` is an empty temporary folder
    on the disk of `options.out`. Raises UserError listing every problem; nothing has been written then.

    Data on every image is kept on disk, in spools, in the order of the ids.
    """
    if format_name == "auto":
        format_name = recognise(source, FORMATS, options)
    check_format_options(format_name, options)
    _check_places(source, options)
    format_module, _ = FORMATS[format_name]
    write_source(format_name, source, format_module.read(source, options), options)


def write_source(format_name: str, source: Path, found: Source, options: Options) -> None:
    """The same for what was `found` in SOURCE."""
    inspection = inspect_items(found, options)
    if not inspection.images and not inspection.bad_images and not found.errors:
        raise UserError(f"{source} contains no annotated image.")
    classes, class_errors = choose_classes(found, inspection.categories, options)
    _check_errors(
        source, [*found.errors, *inspection.name_errors, *class_errors], inspection, len(found.items), options
    )

    convention = find_convention(found, inspection.images, options)
    placed = _place_images(inspection, classes, convention, options)
    if not options.allow_bad_boxes:
        check_convention(placed.box_totals, convention, guessed=found.fractions is None)
    split_by_id, split_warnings = divide(placed.image_totals.split_by_id, options.split_ratio, found.folder)
    splits = make_records(placed.images, split_by_id, classes, placed.image_totals.columns, options)
    source_warnings = [*found.warnings, *inspection.warnings]
    _check_training_objects(source, splits, classes, source_warnings)

    problems = _merge_problems(inspection, placed, options)
    _write(format_name, classes, splits, problems, options)
    warnings = [
        *source_warnings,
        *split_warnings,
        *evaluation_warnings({split: len(records) for split, records in splits.items()}, options),
        *empty_image_warnings(placed.image_totals),
        *duplicate_warnings(split_by_id, placed.image_totals.digests),
        *class_warnings(classes, placed.image_totals.classes),
        *untrained_warnings(splits, classes),
        *thousandths_warnings(placed.box_totals),
        *problem_warnings(problems),
    ]
    for line in list_problems(warnings, bullet="warning: "):
        print(line, file=sys.stderr)
    print_summary(options.out, classes, splits, problems, rotation_line(placed.image_totals))


def _check_places(source: Path, options: Options) -> None:
    """Raise UserError if the dataset cannot be written, or would replace what it is made from."""
    check_writable_target(options.out, options.overwrite)
    if options.images and not options.images.is_dir():
        raise UserError(f"--images {options.images} is not a folder.")
    for place in (source, options.images):
        if place and place.exists() and place.resolve().is_relative_to(options.out.resolve()):
            raise UserError(f"{place} is inside {options.out}, which would be replaced. Use another --out.")


def _check_errors(source: Path, errors: list[str], inspection: Inspection, item_count: int, options: Options) -> None:
    """Raise UserError listing all errors and bad images, if there are any."""
    bad = [f"{item_id}: {image.reason}" for item_id, image in inspection.bad_images.items()]
    if not errors and not bad:
        return
    if len(bad) == item_count > MAX_LISTED:
        hint = NAME_FOLDER
        if options.images:
            hint = f"Check that their names match the files in --images {options.images}."
        raise UserError(
            f"{source}: none of its {len(bad)} images can be read, so nothing was written. {hint} The first of them:",
            bad[:MAX_LISTED],
        )
    hint = ""
    if bad:
        folder = ", or name their folder with --images" if folder_may_help(inspection.bad_images, options) else ""
        hint = f" Fix them, or skip bad images with --skip-bad-images{folder}."
    problems = [*errors, *bad]
    raise UserError(f"{source}: {len(problems)} problem(s), so nothing was written.{hint}", problems)


@dataclass
class _Placed:
    """All placed images, the problems of their objects, and totals."""

    images: Spool[PlacedImage]
    problems: Spool[dict[str, Any]]
    image_totals: ImageTotals = field(default_factory=ImageTotals)
    box_totals: BoxTotals = field(default_factory=BoxTotals)


def _place_images(inspection: Inspection, classes: list[str], convention: Convention, options: Options) -> _Placed:
    placed = _Placed(Spool(options.scratch), Spool(options.scratch))
    for inspected in inspection.images:
        rows, class_problems = keep_classes(inspected.id, inspected.item.rows, classes, options)
        image = place_objects(inspected, rows, classes, convention)
        placed.images.append(image)
        placed.problems.extend([*class_problems, *image.problems])
        placed.image_totals.add(image)
        placed.box_totals.add(image, convention)
    return placed


def _check_training_objects(
    source: Path, splits: dict[str, Spool[Record]], classes: list[str], warnings: list[str]
) -> None:
    """Raise UserError if there is a training split in which no object counts."""
    train = splits.get("train")
    if train is None or any(answer_objects(record)[0] for record in train):
        return
    raise UserError(
        f"{source}: the train split has no objects to learn from in its {len(train)} image(s). The classes are "
        f"{join_names(classes)}. Check that SOURCE names the annotations, choose other --classes, or divide the images again "
        f"with --split-ratio.{' Warnings:' if warnings else ''}",
        warnings,
    )


def _merge_problems(inspection: Inspection, placed: _Placed, options: Options) -> Spool[dict[str, Any]]:
    """All problems in the order of the ids."""
    by_id = itemgetter("id")
    return Spool(options.scratch, heapq.merge(sorted(inspection.problems, key=by_id), placed.problems, key=by_id))


def _write(
    format_name: str,
    classes: list[str],
    splits: dict[str, Spool[Record]],
    problems: Spool[dict[str, Any]],
    options: Options,
) -> None:
    staged = staged_images(options)
    try:
        write_dataset(
            options.out,
            name=options.out.name,
            source_format=format_name,
            classes=classes,
            splits=splits,
            problems=problems,
            overwrite=options.overwrite,
            staged_images=staged if staged.exists() else None,
            descriptions=options.descriptions,
        )
    except UnicodeEncodeError as error:
        excerpt = error.object[max(error.start - 40, 0) : error.end + 40]
        raise UserError(
            f"{excerpt!r} contains characters that are not valid Unicode. Rename the file or class, or fix the text."
        ) from None
