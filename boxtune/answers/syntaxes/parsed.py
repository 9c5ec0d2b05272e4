"""What all answer syntaxes share: the result of parsing a response, and how numbers are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

# A number, or characters that resemble one: "1.2.3" and "−1" with a typographic minus are one token each, and `read_number`
# rejects them.
NUMBER = r"[-+−－]?\d[\d.eE+-]*+|[-+−－]?\.\d[\d.eE+-]*+"
FENCE = re.compile(r"```[a-zA-Z]*")
# No coordinate needs more characters. Python takes quadratic time to convert long integers.
_MAX_NUMBER_LENGTH = 400


class Place(NamedTuple):
    """Position of an object in the text of a response: (start, end) of its numbers and of its label, in characters.

    caption: the same of its caption; (0, 0) if it has none.
    """

    numbers: tuple[int, int]
    label: tuple[int, int]
    caption: tuple[int, int] = (0, 0)

    @property
    def end(self) -> int:
        """The end of the object's numbers, label or caption, whichever comes last."""
        return max(self.numbers[1], self.label[1], self.caption[1])

    def moved(self, offset: int) -> "Place":
        """The same place in a text with `offset` more characters before it."""
        (a, b), (c, d), (e, f) = self
        return Place((a + offset, b + offset), (c + offset, d + offset), (e + offset, f + offset) if f else (0, 0))


class ParsedObject(NamedTuple):
    """One object as written, not validated: `values` may have any length and types.

    label: None if the object has none; "" if there is one that cannot be read. caption: the same of its caption.
    """

    values: Sequence[object]
    label: str | None
    place: Place
    caption: str | None = None


@dataclass
class Parsed:
    """The content of a response, in the codec's own coordinates, and the kinds of problems found in its text."""

    objects: list[ParsedObject] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Add a kind of problem that is listed once per response."""
        if problem not in self.problems:
            self.problems.append(problem)


class Syntax(Protocol):
    """The interface of each module in this package. `parse` never raises and takes linear time on any text."""

    def write(self, rows: list[list[int]], labels: list[str]) -> str: ...

    def parse(self, text: str) -> Parsed: ...


@lru_cache(maxsize=2000)
def read_number(token: str) -> int | float | str:
    """The number that `token` spells, or the token itself if it does not spell one."""
    if len(token) > _MAX_NUMBER_LENGTH or token[0].isalpha():  # float() would accept "nan" and "infinity"
        return token
    try:
        return int(token)
    except ValueError:
        pass
    try:
        return float(token)
    except ValueError:
        return token


@lru_cache(maxsize=2000)
def read_numbers(text: str) -> tuple[int | float | str, ...]:
    """All numbers in `text`."""
    return tuple(map(read_number, re.findall(NUMBER, text)))
