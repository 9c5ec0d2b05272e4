"""Files in tar archives, read without unpacking. A path such as DIR/train-00003.tar/17.jpg names one of them."""

import os
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".tar"
# Open archives in one process. A data loader's worker reads one archive, and sometimes the next, at a time.
_OPEN = 8


def is_member(path: str | Path) -> bool:
    """Whether the path names a file in an archive."""
    archive = Path(path).parent
    return archive.suffix == SUFFIX and archive.is_file()


def read_member(path: str | Path) -> bytes:
    """The content of a file in an archive. Raises OSError if the archive or the file cannot be read."""
    archive, name = Path(path).parent, Path(path).name
    file, places = _open(archive)
    if name not in places:
        raise FileNotFoundError(f"{archive} does not contain {name}")
    offset, size = places[name]
    # Without a file position, which processes that were forked after the archive was opened would share.
    content = os.pread(file.fileno(), size, offset)
    if len(content) != size:
        raise OSError(f"{archive} ends within {name}")
    return content


@lru_cache(_OPEN)
def _open(archive: Path) -> tuple[BinaryIO, dict[str, tuple[int, int]]]:
    """The open archive, and (offset, size) of each of its files. Its headers are read once."""
    try:
        with tarfile.open(archive, "r:") as members:
            places = {member.name: (member.offset_data, member.size) for member in members}
    except tarfile.TarError as error:
        raise OSError(f"{archive} is corrupt: {error}") from None
    return open(archive, "rb", buffering=0), places
