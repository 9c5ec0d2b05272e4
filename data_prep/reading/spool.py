"""Values of which there may be too many for memory."""

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Spool(Generic[T]):
    """A list whose values lie in a temporary file on the disk of `folder`: eight bytes of memory each.

    What is read is a copy; changing it changes nothing here. The file has no name, and goes with the list.
    """

    def __init__(self, folder: Path, values: Iterable[T] = ()):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, as it lives as long as the list
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
        return pickle.load(self._file)

    def __iter__(self) -> Iterator[T]:
        return (self[number] for number in range(len(self)))
