"""Paths, image files, and writing files and folders completely or not at all."""

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from boxtune.common.errors import UserError

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm", ".pbm",
    ".tga", ".mpo", ".avif",
}  # fmt: skip


# The first bytes of compressed files, which are often given in place of text files, and what unpacks them.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", "7z x"),
}


def compression_problem(path: str | Path) -> str | None:
    """That a file is compressed, by its first bytes, as a message about it; None if it is not."""
    with open(path, "rb") as file:
        head = file.read(8)
    found = next((names for magic, names in _COMPRESSED.items() if head.startswith(magic)), None)
    return f"{path} is compressed ({found[0]}). Unpack it first: {found[1]}" if found else None


def check_is_text(path: str | Path) -> None:
    """Raises UserError if a file that should be UTF-8 text is compressed or UTF-16, by its first bytes."""
    if problem := compression_problem(path):
        raise UserError(problem)
    with open(path, "rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path} is UTF-16 text. Save it as UTF-8.")


def path_argument(text: str) -> Path:
    """The `type` of a path argument of argparse. Rejects an empty path (an unset shell variable), which would mean `.`."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def named(text: str) -> Path:
    """The path; if it ends in `.` or `..`, its absolute form, so that its last part is the name of the folder."""
    path = Path(text)
    return path if path.name not in ("", "..") else path.resolve()


def folder_problems(path: Path) -> list[str]:
    """Why no folder can be created at `path`; empty if it can be, or if it exists."""
    problems = [f"{file} is a file; name a folder" for file in (path, *path.parents) if os.path.isfile(file)]
    return problems + [f"{part!r:.60} is too long for a file name" for part in path.parts if not is_file_name(part)]


def is_file_name(name: str) -> bool:
    """Whether `name` fits into the 255 bytes that most file systems allow."""
    return len(name.encode(errors="replace")) <= 255


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix. Hidden files do not count."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file at any depth, sorted within each folder; broken links are included.

    Linked folders are entered unless the links form a loop; `above` holds the real paths of the folders above this one.
    Hidden folders are skipped, because tools such as notebooks keep copies in them.
    """
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
    """Write a temporary file next to `path`, then rename it, so that no reader sees half a file.

    A lone surrogate, which a response can contain, is written as \\uXXXX. In a JSON string this reads back unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the user's path, not the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(whole: Path, folder: Path) -> None:
    """Rename the folder `whole` to `folder`, replacing an existing one.

    The old folder is moved aside first and moved back if the renaming fails, so that an interruption leaves the old or the
    new one. If `folder` is a link, its target is replaced and the link is kept.
    """
    folder = folder.resolve()
    if not folder.exists():
        os.rename(whole, folder)
        return
    old = folder.with_name(f".{folder.name[:64]}.{os.getpid()}.old")
    os.rename(folder, old)
    try:
        os.rename(whole, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)
