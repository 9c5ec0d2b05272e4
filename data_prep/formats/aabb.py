"""AABB: a JSON list of pictures whose objects have `class` and `bbox_aabb`, [x1, y1, x2, y2] in
fractions from 0 to 1.

`image` names the picture, `image_path` where it lies, if elsewhere. Whatever else an object or
a picture has is kept.
"""

import os
from pathlib import Path

from data_prep.reading.files import (
    ImageFinder,
    annotation_files,
    image_finder_for,
    image_name,
    is_set,
    read_json,
    stated_size,
)
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        entries = [entry for entry in value if not _fault(entry)] if isinstance(value, list) else []
        if any("bbox_aabb" in thing for entry in entries for thing in entry["objects"]):
            return f"{path} has objects with bbox_aabb"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["*.json"], options)
    found = Source(Spool(options.scratch), layout="xyxy", fractions=True, warnings=warnings)
    for file, split in files:
        entries = read_json(file)
        if not isinstance(entries, list):
            found.errors.append(f"{file}: AABB needs a list of pictures, got {type(entries).__name__}")
            continue
        pictures = image_finder_for(file, source, options)
        for number, entry in enumerate(entries):
            if fault := _fault(entry):
                found.errors.append(f"{file}: entry {number} {fault}")
            else:
                found.items.append(_read_entry(entry, file, split, source, pictures))
    return found


def _fault(entry) -> str | None:
    """What keeps an entry from being read, or None."""
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        return f"needs `image`, the name of a picture, got {entry!r:.100}"
    if not isinstance(entry.get("image_path", ""), str | None):
        return f"({entry['image']}): image_path must be text, got {entry['image_path']!r:.100}"
    if not isinstance(entry.get("objects"), list):
        return f"({entry['image']}) needs the list `objects`, empty where there are none"
    for number, thing in enumerate(entry["objects"]):
        if not isinstance(thing, dict) or not isinstance(thing.get("class"), str):
            return f"({entry['image']}): objects[{number}] needs `class`, got {thing!r:.100}"
    return None


def _read_entry(entry: dict, file: Path, split: str | None, source: Path, pictures: ImageFinder) -> Item:
    extra = {key: value for key, value in entry.items() if key not in {"image", "image_path", "objects"}}
    picture = pictures.find(entry["image"])
    if entry.get("image_path") and not os.path.isfile(picture):
        picture = pictures.find(entry["image_path"])
        if os.path.isdir(picture):
            picture = ImageFinder([picture]).find(entry["image"])
    size = stated_size(extra.pop("width", None), extra.pop("height", None))
    name = image_name(entry["image"], picture, file, source)
    return Item(name, str(picture), [_read_object(thing) for thing in entry["objects"]], split, size, extra)


def _read_object(thing: dict) -> Row:
    box_xyxy = thing.get("bbox_aabb")
    extra = {key: value for key, value in thing.items() if key not in {"class", "bbox_aabb", "ignore"}}
    box_xyxy = box_xyxy if isinstance(box_xyxy, list) else [box_xyxy]
    return Row(box_xyxy, thing["class"].strip(), ignore=is_set(thing.get("ignore")), extra=extra)
