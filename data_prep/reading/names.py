"""What names tell: the split that a file or folder is named after, and what stands for an image."""

import hashlib
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
    """The split that a file or folder name speaks of ("instances_val2017" → "validation"); None for none or several."""
    found = {_SPLIT_OF_WORD[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def split_of_folders(name: str) -> str | None:
    """The split that the folders in the name of a file speak of; None for none or several."""
    found = {split_of(part) for part in PurePosixPath(name).parts[:-1]} - {None}
    return found.pop() if len(found) == 1 else None


def without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def fraction_of(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
