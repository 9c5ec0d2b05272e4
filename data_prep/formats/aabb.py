"""AABB: a JSON list of images whose objects have `class` and `bbox_aabb`, [x0, y0, x1, y1] in
fractions from 0 to 1.

`image` is the name of an image, and `image_path` its path if it is elsewhere. All other keys of
objects and images are kept.
"""

import os
from pathlib import Path
from typing import Any

from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import ImageFinder, image_finder_for, image_name
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_json
from data_prep.reading.values import is_set, stated_size


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        entries = [entry for entry in value if not _fault(entry)] if isinstance(value, list) else []
        if any("bbox_aabb" in thing for entry in entries for thing in entry["objects"]):
            return f"{path} has objects with bbox_aabb"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["*.json"], options)
    found = Source(Spool(options.scratch), layout="xyxy", fractions=True, warnings=warnings, folder=folder)
    for file in files:
        _read_file(file, options, found)
    return found


def _read_file(file: AnnotationFile, options: Options, found: Source) -> None:
    entries = read_json(file.path)
    if not isinstance(entries, list):
        found.errors.append(f"{file}: AABB needs a list of images, got {type(entries).__name__}")
        return
    images = image_finder_for(file, options)
    for number, entry in enumerate(entries):
        if fault := _fault(entry):
            found.errors.append(f"{file}: entry {number} {fault}")
        else:
            found.items.append(_read_entry(entry, file, images))


def _fault(entry: Any) -> str | None:
    """Why an entry cannot be read, or None."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        return f"needs `image`, the name of an image, got {entry!r:.100}"
    if not isinstance(entry.get("image_path", ""), str | None):
        return f"({entry['image']}): image_path must be text, got {entry['image_path']!r:.100}"
    if not isinstance(entry.get("objects"), list):
        return f"({entry['image']}) needs the list `objects`, empty if there are none"
    for number, thing in enumerate(entry["objects"]):
        if not isinstance(thing, dict) or not isinstance(thing.get("class"), str):
            return f"({entry['image']}): objects[{number}] needs `class`, got {thing!r:.100}"
    return None


def _read_entry(entry: dict[str, Any], file: AnnotationFile, images: ImageFinder) -> Item:
    extra = {key: value for key, value in entry.items() if key not in {"image", "image_path", "objects"}}
    image_path = _find_image(entry, images)
    return Item(
        name=image_name(entry["image"], image_path, file),
        image_path=str(image_path),
        rows=[_read_object(thing) for thing in entry["objects"]],
        split=file.split,
        size=stated_size(extra.pop("width", None), extra.pop("height", None)),
        extra=extra,
    )


def _find_image(entry: dict[str, Any], images: ImageFinder) -> Path:
    """The image by its name; else by `image_path`, which may also be the folder that contains it."""
    image_path = images.find(entry["image"])
    if os.path.isfile(image_path) or not entry.get("image_path"):
        return image_path
    image_path = images.find(entry["image_path"])
    return ImageFinder([image_path]).find(entry["image"]) if os.path.isdir(image_path) else image_path


def _read_object(thing: dict[str, Any]) -> Row:
    box_xyxy = thing.get("bbox_aabb")
    extra = {key: value for key, value in thing.items() if key not in {"class", "bbox_aabb", "ignore"}}
    box_xyxy = box_xyxy if isinstance(box_xyxy, list) else [box_xyxy]
    return Row(box_xyxy, thing["class"].strip(), ignore=is_set(thing.get("ignore")), extra=extra)
