"""What all answer syntaxes share: the result of parsing a response, and how numbers are read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

# A number, or characters that resemble one: "1.2.3" is one token, and `read_number` rejects it.
NUMBER = r"[-+]?\d[\d.eE+-]*+|[-+]?\.\d[\d.eE+-]*+"
# No coordinate needs more characters. Python takes quadratic time to convert long integers.
_MAX_NUMBER_LENGTH = 40


class Place(NamedTuple):
    """Position of an object in the text of a response: (start, end) of its numbers and of its label, in characters."""

    numbers: tuple[int, int]
    label: tuple[int, int]


class ParsedObject(NamedTuple):
    """One object as written, not validated: `values` may have any length and types, and `label` may be anything.

    `place` is None if the object cannot be located in the text.
    """

    values: Sequence[object]
    label: object
    place: Place | None


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
