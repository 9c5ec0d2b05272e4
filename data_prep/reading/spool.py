"""Lists that are kept on disk because they may not fit in memory."""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from boxtune.common.errors import UserError

T = TypeVar("T")


class Spool(Generic[T]):
    """A list whose values are in a temporary file in `folder`. It needs eight bytes of memory for each value.

    Reading returns a copy; changing the copy does not change the list. The file has no name and is deleted with the list.
    """

    def __init__(self, folder: Path, values: Iterable[T] = ()) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it must stay open as long as the list exists
        self._starts = array("q")
        self.extend(values)

    def append(self, value: T) -> None:
        self._starts.append(self._file.seek(0, os.SEEK_END))
        pickle.dump(value, self._file, pickle.HIGHEST_PROTOCOL)

    def extend(self, values: Iterable[T]) -> None:
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> T:
        self._file.seek(self._starts[number])
        value: T = pickle.load(self._file)
        return value

    def __iter__(self) -> Iterator[T]:
        return (self[number] for number in range(len(self)))


def folder_for_scratch(out: Path) -> Path:
    """An existing folder on the disk of `out`, for temporary files. Raises UserError if no folder `out` can be created."""
    nearest = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UserError(f"{nearest} is not a folder, so {out} cannot be created. Use another path.")
    return out.parent if nearest == out else nearest
