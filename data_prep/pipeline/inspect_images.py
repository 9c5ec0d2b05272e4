"""What a reader found → pictures that have an id and were decoded, in the order of their ids."""

from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from boxtune.common.errors import UserError
from boxtune.data.image_checks import BadImage, ImageFacts, check_images
from data_prep.pipeline.splits import choose_entries
from data_prep.reading.names import without_suffix
from data_prep.reading.source import Entry, Item, Options, Source, problem
from data_prep.reading.spool import Spool

# How many pictures are named where none can be read.
LISTED = 5
NAME_FOLDER = "Do they lie elsewhere? Name their folder with --images."
# Of every usual file system.
_LONGEST_NAME = 255


class Inspected(NamedTuple):
    """An item under its final name, and the facts of its picture, or the reason why that cannot be used."""

    id: str
    item: Item
    picture: ImageFacts | BadImage


def inspect_items(
    found: Source, options: Options
) -> tuple[Spool[Inspected], list[dict], list[str], dict[str, BadImage]]:
    """(pictures to go on with, problems so far, errors in names, reasons of bad pictures by id).

    Bad pictures are errors, or left out and problems if the user says so. Raises UserError where none is left.
    """
    entries = [Entry(number, item.name, item.picture, item.split) for number, item in enumerate(found.items)]
    entries, problems, warnings = choose_entries(entries, by_folders=options.split_ratio is None)
    found.warnings += warnings
    named, errors = name_entries(entries)
    inspected, bad = Spool(options.scratch), {}
    pictures = check_images([entry.picture for entry in named.values()], options.workers)
    for (item_id, entry), picture in zip(named.items(), pictures, strict=True):
        if isinstance(picture, BadImage):
            bad[item_id] = picture
        if item_id not in bad or not options.skip_bad_images:
            item = found.items[entry.number]
            item.name, item.split = entry.name, entry.split
            inspected.append(Inspected(item_id, item, picture))
    problems += found.problems
    if not options.skip_bad_images:
        return inspected, problems, errors, bad
    if bad and not inspected:
        missing = options.images is None and any(image.missing for image in bad.values())
        raise UserError(
            f"No image is left, all {len(bad)} are bad. {NAME_FOLDER + ' ' if missing else ''}The first of them:",
            [image.reason for image in bad.values()][:LISTED],
        )
    problems += [problem(item_id, "bad_image", image.reason, "image left out") for item_id, image in bad.items()]
    return inspected, problems, errors, {}


def name_entries(entries: list[Entry]) -> tuple[dict[str, Entry], list[str]]:
    """({id: entry} in the order of ids, errors). An id keeps its extension, or gets its split in front, against collisions."""
    first_split: dict[str, str | None] = {}
    shared = {entry.name for entry in entries if first_split.setdefault(entry.name, entry.split) != entry.split}
    for entry in entries:
        if entry.name in shared and entry.split:
            entry.name = f"{entry.split}/{entry.name}"
    errors, by_name, by_picture = [], {}, {}
    folders = {str(folder) for entry in entries for folder in PurePosixPath(entry.name).parents}
    for entry in entries:
        if fault := _name_fault(entry.name, folders):
            errors.append(f"{entry.name!r:.100} {fault}")
        if by_name.setdefault(entry.name, entry) is not entry:
            errors.append(f"{entry.name} stands twice; give each picture one entry")
        elif (other := by_picture.setdefault((entry.split, entry.picture), entry)) is not entry:
            errors.append(
                f"{entry.name} and {other.name} are one picture, {entry.picture}; give each picture one entry"
            )
    ids = {name: without_suffix(name) for name in by_name}
    while shared := {item_id for item_id, count in Counter(ids.values()).items() if count > 1}:
        ids = {name: name if item_id in shared else item_id for name, item_id in ids.items()}
    return {ids[name]: by_name[name] for name in sorted(ids, key=ids.get)}, errors


def _name_fault(name: str, folders: set[str]) -> str | None:
    """Why no file system, or not this data set, can hold a picture of that name; or None."""
    if not all(0 < len(part.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME for part in name.split("/")):
        return f"is longer than the {_LONGEST_NAME} bytes that a file name may have"
    if "\0" in name:
        return "holds a NUL character, which no file name may"
    return "is a picture, and also a folder of pictures" if name in folders else None
