"""Which split a file or folder is named after."""

import re
from pathlib import PurePosixPath

ALIASES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "trainval": ("trainval",),
}
_SPLIT_OF_WORD = {word: split for split, words in ALIASES.items() for word in words}


def split_of(text: str) -> str | None:
    """The split in a file or folder name ("instances_val2017" → "validation"); None if it names none or several."""
    splits = {_SPLIT_OF_WORD[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _SPLIT_OF_WORD}
    return splits.pop() if len(splits) == 1 else None


def split_of_folders(name: str) -> str | None:
    """The split in the folder names of a path ("data/val/a.jpg" → "validation"); None if they name none or several."""
    splits = {split_of(part) for part in PurePosixPath(name).parts[:-1]} - {None}
    return splits.pop() if len(splits) == 1 else None
