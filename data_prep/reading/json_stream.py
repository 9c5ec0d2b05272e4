"""The lists of a large JSON object, element by element, without the whole document in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_CHUNK = 1 << 20  # characters


def lists_of_object(path: Path) -> Iterator[tuple[str, Iterator[object]]]:
    """(key, the elements) of every list at the top of a UTF-8 JSON object, in the order of the file; other values are skipped.

    The elements can be read until the next key is asked for. Raises ValueError if the file is not a JSON object.
    """
    with open(path, encoding="utf-8-sig") as file:
        reader = _Reader(file)
        reader.take("{")
        is_first = True
        while reader.goes_on(is_first, "}"):
            is_first = False
            key = reader.value()
            if not isinstance(key, str):
                raise ValueError(f"a key must be text, got {key!r:.40}")
            reader.take(":")
            if reader.peek() == "[":
                elements = _elements(reader)
                yield key, elements
                for _ in elements:  # those that were not asked for
                    pass
            else:
                reader.value()
        if reader.peek():
            raise ValueError("there is more after the object")


def _elements(reader: "_Reader") -> Iterator[object]:
    reader.take("[")
    is_first = True
    while reader.goes_on(is_first, "]"):
        is_first = False
        yield reader.value()


class _Reader:
    """Reads a JSON text from its start, in chunks."""

    def __init__(self, file: TextIO):
        self.file = file
        self.text, self.at, self.is_all = "", 0, False
        self.decoder = json.JSONDecoder()

    def _more(self, count: int) -> None:
        chunk = self.file.read(count)
        self.is_all = not chunk
        self.text, self.at = self.text[self.at :] + chunk, 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\n\r":
                    return self.text[self.at]
                self.at += 1
            if self.is_all:
                return ""
            self._more(_CHUNK)

    def take(self, character: str) -> None:
        if (found := self.peek()) != character:
            raise ValueError(f"expected {character!r}, found {found!r}")
        self.at += 1

    def goes_on(self, is_first: bool, end: str) -> bool:
        """Whether another element follows; takes the comma before it, or else the `end`."""
        if self.peek() == end:
            self.at += 1
            return False
        if not is_first:
            self.take(",")
        return True

    def value(self) -> object:
        """The value at this position. It is decoded again with more text for as long as it is incomplete."""
        self.peek()
        wanted = _CHUNK
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if self.is_all:
                    raise
            else:
                # A number may go on: at the end of a chunk, or where its fraction or exponent is not there yet.
                goes_on = end == len(self.text) or (isinstance(value, int | float) and self.text[end] in ".eE")
                if self.is_all or not goes_on:
                    self.at = end
                    return value
            self._more(wanted)
            wanted *= 2
