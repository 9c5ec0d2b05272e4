"""Placed images → the records of each split."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from boxtune.common.errors import UserError
from boxtune.data.record_checks import record_problems
from boxtune.data.records import SPLITS, Record, as_objects
from data_prep.pipeline.place import PlacedImage
from data_prep.pipeline.questions import ask
from data_prep.reading.source import Options, plain
from data_prep.reading.spool import Spool

_RECORD_KEYS = {"id", "image", "width", "height", "objects", "messages"}
_OBJECT_KEYS = {"bbox", "category", "ignore"}


def make_records(
    images: Iterable[PlacedImage],
    split_by_id: dict[str, str],
    classes: list[str],
    columns: list[str],
    options: Options,
) -> dict[str, Spool[Record]]:
    """{split: its records}, without empty splits. Images that DIR/images will hold are copied to `staged_images`.

    `columns` are the keys that any object has beyond box and class. Every record gets all of them, because `datasets`
    needs one schema. Raises UserError listing all records that break the contract.
    """
    column_names = _free_names(columns, _OBJECT_KEYS)
    splits: dict[str, Spool[Record]] = {split: Spool(options.scratch) for split in SPLITS}
    faults = []
    for image in images:
        split = split_by_id[image.id]
        # Validation and test keep asking for all classes, because evaluation asks one question per image.
        questions = "all" if options.questions == "mixed" and split != "train" else options.questions
        record = _make_record(image, column_names, classes, questions, options)
        faults += record_problems(record)
        splits[split].append(record)
        if _is_copied(image, options):
            _stage(image, options)
    if faults:
        raise UserError("These records would be invalid, possibly because of a class name:", faults)
    return {split: records for split, records in splits.items() if records}


def _make_record(
    image: PlacedImage, column_names: dict[str, str], classes: list[str], questions: str, options: Options
) -> Record:
    """The record of one image. `column_names` is {key of an object's `extra`: the name of its column}."""
    columns: dict[str, list[Any]] = {
        "bbox": [placed.box_xyxy for placed in image.objects],
        "category": [placed.category for placed in image.objects],
        "ignore": [placed.ignore for placed in image.objects],
    }
    for key, name in column_names.items():
        columns[name] = [plain(placed.extra.get(key)) for placed in image.objects]
    width, height = image.facts.upright
    record: Record = {
        "id": image.id,
        "image": f"images/{image.name}" if _is_copied(image, options) else os.path.abspath(image.image_path),
        "width": width,
        "height": height,
        "objects": as_objects(columns),
        "messages": ask(image.id, columns, classes, questions, options.descriptions),
    }
    key_names = _free_names(list(image.extra), _RECORD_KEYS)
    further = {key_names[key]: plain(value) for key, value in image.extra.items()}
    return cast(Record, {**record, **further})


def _free_names(keys: list[str], taken: set[str]) -> dict[str, str]:
    """{key: the name to write it under}. A name that is taken is prefixed with "source_", repeatedly if necessary."""
    names = {key: key for key in keys if key not in taken}
    for key in keys:
        name = key
        while name in taken or (key not in names and name in names.values()):
            name = f"source_{name}"
        names[key] = name
    return names


def staged_images(options: Options) -> Path:
    """The folder that becomes DIR/images, if there is any image to copy."""
    return options.scratch / "images"


def _is_extracted(image: PlacedImage, options: Options) -> bool:
    """Whether a reader wrote the image file, because the source holds it as bytes inside another file."""
    return Path(image.image_path).is_relative_to(options.scratch)


def _is_copied(image: PlacedImage, options: Options) -> bool:
    return options.copy_images or _is_extracted(image, options)


def _stage(image: PlacedImage, options: Options) -> None:
    target = staged_images(options) / image.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_extracted(image, options):
        os.rename(image.image_path, target)
    else:
        shutil.copyfile(image.image_path, target)
