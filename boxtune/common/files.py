"""Files and folders: what is a picture by its name, what lies below, and writing them as a whole or not at all."""

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm", ".pbm",
    ".tga", ".mpo", ".avif",
}  # fmt: skip


def path_argument(text: str) -> Path:
    """For argparse: a path that was given. An empty one, as of an unset shell variable, would mean this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def named(text: str) -> Path:
    """A path whose last part is a name, which `.` and `..` are not."""
    path = Path(text)
    return path if path.name not in ("", "..") else path.resolve()


def folder_problems(path: Path) -> list[str]:
    """Why no folder can be made at `path`; empty where it can, or is there."""
    problems = [f"{place} is a file; name a folder" for place in (path, *path.parents) if os.path.isfile(place)]
    return problems + [f"{part!r:.60} is too long for a name" for part in path.parts if not is_file_name(part)]


def is_file_name(name: str) -> bool:
    """Whether it has at most the 255 bytes that most file systems allow."""
    return len(name.encode(errors="replace")) <= 255


def is_image(path: Path) -> bool:
    """Whether a path looks like a picture by its name; hidden files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file at any depth, and every broken link. Linked folders are entered too, but not where links form a loop, and
    no hidden ones, where tools such as notebooks keep copies."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.name.startswith("."):
                yield from files_below(path, (*above, real))
        else:
            yield path


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
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # what the user asked for, not its temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(whole: Path, folder: Path) -> None:
    """Rename `whole` to `folder`. One that is there is moved aside until then: whatever comes between, one of them stands.

    Through a link, which stays.
    """
    folder = folder.resolve()
    if not folder.exists():
        os.rename(whole, folder)
        return
    aside = folder.with_name(f".{folder.name[:64]}.{os.getpid()}.old")
    os.rename(folder, aside)
    try:
        os.rename(whole, folder)
    except BaseException:
        os.rename(aside, folder)
        raise
    shutil.rmtree(aside)
