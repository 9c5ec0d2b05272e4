"""Writing a file as a whole or not at all."""

import argparse
import os
from pathlib import Path


def path_argument(text: str) -> Path:
    """For argparse: a path that was given. An empty one, as of an unset shell variable, would mean this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def write_whole(path: str | Path, text: str) -> None:
    """Write beside `path` under a temporary name, then rename: no reader ever meets half a file.

    A lone surrogate, which a model's answer can hold, is written as \\uXXXX; inside a JSON string that reads back the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
