"""A unique id for each image of a source."""

from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from data_prep.reading.encodings import describe_names, has_other_bytes
from data_prep.reading.names import without_suffix
from data_prep.reading.source import Entry

# In bytes, on all common file systems.
_MAX_NAME_LENGTH = 255


class ImageIds(NamedTuple):
    """`entries` is {id: entry}, sorted by id; `errors` lists names that cannot be used and images with several entries."""

    entries: dict[str, Entry]
    errors: list[str]


def assign_ids(entries: list[Entry]) -> ImageIds:
    """The id is the name without its extension.

    It starts with the split if two splits share the name, and keeps the extension if it would not be unique otherwise.
    """
    _prefix_shared_names(entries)
    by_name: dict[str, Entry] = {}
    for entry in entries:
        by_name.setdefault(entry.name, entry)
    ids = {name: without_suffix(name) for name in by_name}
    while repeated := {item_id for item_id, count in Counter(ids.values()).items() if count > 1}:
        ids = {name: name if item_id in repeated else item_id for name, item_id in ids.items()}
    return ImageIds({ids[name]: by_name[name] for name in sorted(ids, key=ids.__getitem__)}, _entry_errors(entries))


def _prefix_shared_names(entries: list[Entry]) -> None:
    """Put the split in front of each name that occurs in more than one split."""
    first_split: dict[str, str | None] = {}
    shared = {entry.name for entry in entries if first_split.setdefault(entry.name, entry.split) != entry.split}
    for entry in entries:
        if entry.name in shared and entry.split:
            entry.name = f"{entry.split}/{entry.name}"


def _entry_errors(entries: list[Entry]) -> list[str]:
    errors: list[str] = []
    by_name: dict[str, Entry] = {}
    by_image: dict[tuple[str | None, str], Entry] = {}
    folders = {str(folder) for entry in entries for folder in PurePosixPath(entry.name).parents}
    for entry in entries:
        if problem := _name_problem(entry.name, folders):
            errors.append(f"{entry.name!r:.100} {problem}")
        if by_name.setdefault(entry.name, entry) is not entry:
            errors.append(f"duplicate entry for {entry.name}; keep one entry per image")
            continue
        first = by_image.setdefault((entry.split, entry.image_path), entry)
        if first is not entry:
            errors.append(
                f"{entry.name} and {first.name} are the same image, {entry.image_path}; keep one entry per image"
            )
    return errors


def _name_problem(name: str, folders: set[str]) -> str | None:
    """Why the dataset cannot hold an image of that name, or None."""
    parts = [part.encode("utf-8", "surrogatepass") for part in name.split("/")]
    if not all(parts):
        return "contains an empty file or folder name"
    if any(len(part) > _MAX_NAME_LENGTH for part in parts):
        return f"is longer than {_MAX_NAME_LENGTH} bytes, the limit for a file name"
    if has_other_bytes(name):
        return f"is not valid Unicode: file names are {describe_names([name])} FOLDER"
    if "\0" in name:
        return "contains a NUL character, which is not allowed in file names"
    return "is the name of both an image and a folder of images" if name in folders else None
