"""Names of images: relative paths with forward slashes, as sources write them and as they are written out."""

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath


def safe_name(name: str) -> str:
    """A relative path with forward slashes that stays inside the folder it is put in."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in {"/", "//"}]
    return "/".join("__" if part == ".." else part for part in parts) or "_"


def relative_name(path: Path, folder: Path) -> str:
    """The path relative to a folder, made safe by `safe_name`."""
    return safe_name(os.path.relpath(path, folder))


def normal(name: str) -> str:
    """The name in Unicode's composed form (NFC). macOS writes `é` as two characters; other systems mostly as one."""
    return unicodedata.normalize("NFC", name)


def without_suffix(name: str) -> str:
    """The name without its extension."""
    return str(PurePosixPath(name).with_suffix(""))


def is_absolute(name: str) -> bool:
    """Whether a path with forward slashes starts at a root or a drive; such a path often comes from another machine."""
    return re.match(r"/|[A-Za-z]:/", name) is not None


def tails(name: str) -> list[str]:
    """A path with forward slashes and its tails: "a/b/c" → ["a/b/c", "b/c", "c"]."""
    parts = name.split("/")
    return [name, *("/".join(parts[i:]) for i in range(1, len(parts)))]
