"""Create ML: a JSON list of images whose annotations have a `label` and `coordinates`, the
center, width and height, as in Apple's documentation of its object detector; one file, or one
for each split.

The image is named by `image` or `imagefilename`. Boxes are in pixels, or all in fractions.
"""

from pathlib import Path
from typing import Any

from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_json

_IMAGE_KEYS = ("image", "imagefilename")
_LIST_KEYS = ("annotations", "annotation")
_SIDES = ("x", "y", "width", "height")


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        entries = [entry for entry in value if not _fault(entry)] if isinstance(value, list) else []
        if any(_value(entry, _LIST_KEYS) for entry in entries):
            return f"{path} has annotations with label and coordinates"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["*.createml.json", "*.json"], options)
    found = Source(Spool(options.scratch), layout="cxcywh", fractions=None, warnings=warnings, folder=folder)
    for file in files:
        _read_file(file, options, found)
    return found


def _read_file(file: AnnotationFile, options: Options, found: Source) -> None:
    entries = read_json(file.path)
    if not isinstance(entries, list):
        found.errors.append(f"{file}: Create ML needs a list of images, got {type(entries).__name__}")
        return
    images = image_finder_for(file, options)
    for number, entry in enumerate(entries):
        if fault := _fault(entry):
            found.errors.append(f"{file}: entry {number} {fault}")
            continue
        image_path = images.find(_value(entry, _IMAGE_KEYS))
        rows = [_read_object(thing) for thing in _value(entry, _LIST_KEYS)]
        name = image_name(_value(entry, _IMAGE_KEYS), image_path, file)
        found.items.append(Item(name, str(image_path), rows, file.split))


def _value(entry: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first of the keys that the entry has."""
    return next((entry[key] for key in keys if key in entry), None)


def _fault(entry: Any) -> str | None:
    """Why an entry cannot be read, or None."""
    if not isinstance(entry, dict) or not isinstance(_value(entry, _IMAGE_KEYS), str) or not _value(entry, _IMAGE_KEYS):
        return f"needs `image`, the name of an image, got {entry!r:.100}"
    if not isinstance(_value(entry, _LIST_KEYS), list):
        return f"({_value(entry, _IMAGE_KEYS)}) needs the list `annotations`, empty if there are none"
    for number, thing in enumerate(_value(entry, _LIST_KEYS)):
        is_object = isinstance(thing, dict) and isinstance(thing.get("label"), str)
        if not is_object or not isinstance(thing.get("coordinates"), dict):
            return (
                f"({_value(entry, _IMAGE_KEYS)}): annotations[{number}] needs label and coordinates, got {thing!r:.100}"
            )
    return None


def _read_object(thing: dict[str, Any]) -> Row:
    return Row([thing["coordinates"].get(key) for key in _SIDES], thing["label"].strip())
