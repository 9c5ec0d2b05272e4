"""Where an answer's objects stand among its tokens: what the box losses, and noise objects, need to know.

Two things are found. The *digits* of every box. And the *decisions*: before each object and after the last, one token says
whether another object follows or the answer ends, and another token would have said the opposite. Which two tokens these
are depends on the tokeniser and, where it joins a label's last sign with what closes the object, on the label; so both
are found by writing short answers and looking where they part.
"""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from boxtune.answers.codecs import Codec
from boxtune.common.errors import UserError

_NUMBER = re.compile(r"[0-9]+")
# A frame that holds the boxes of the answers written here to learn from.
_SIZE = (1000, 1000)
_BOX = [100, 100, 500, 500]


@dataclass(frozen=True)
class Decision:
    """The token number `index` is `go_on` or `stop`, and the other of the two would have been the opposite."""

    index: int
    go_on: int
    stop: int
    goes_on: bool


@dataclass(frozen=True)
class ObjectTokens:
    """Token numbers of one object: the digits of each of its numbers (four for a box, two for a point) and its label's,
    which reads `name`."""

    numbers: list[list[int]]
    label: list[int]
    name: str


@dataclass(frozen=True)
class AnswerTokens:
    """`ids` are the tokens of an answer and its end token; `digits` {token number: value} of those in a box's numbers."""

    ids: list[int]
    objects: list[ObjectTokens]
    decisions: list[Decision]
    digits: dict[int, int]


class AnswerTokenizer:
    """Tokenises answers of one codec, each with its end token, and finds objects and decisions in them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codec: Codec):
        self.tokenizer, self.codec = tokenizer, codec
        none, one = self._tokenize(self._write([]))[0], self._tokenize(self._write(["object"]))[0]
        first = _parting(none, one)
        self._first = first, one[first], none[first]
        self._after: dict[str, tuple[int, int, int]] = {}

    def __call__(self, answer: str, input_size: tuple[int, int]) -> AnswerTokens:
        """`answer` as the codec wrote it, without its end token, for a picture of `input_size` (height, width).

        Raises UserError where the tokeniser joins digits: then a coordinate has no digits to learn from.
        """
        text = answer + self.tokenizer.eos_token
        ids, spans = self._tokenize(text)
        found = self.codec.decode(answer, input_size, input_size)
        starting = {start: i for i, (start, _) in enumerate(spans)}
        digits: dict[int, int] = {}
        objects, decisions = [], [self._decision(ids, self._first[0], *self._first[1:])]
        for place, label in zip(found.places, found.labels, strict=True):
            numbers = []
            for number in _NUMBER.finditer(text, *place.numbers):
                numbers.append([self._digit(spans, starting, at) for at in range(*number.span())])
                digits |= zip(numbers[-1], map(int, number.group()), strict=True)
            inside = [i for i, (start, end) in enumerate(spans) if start < place.label[1] and end > place.label[0]]
            objects.append(ObjectTokens(numbers, inside, label))
            offset, go_on, stop = self._after_label(label)
            index = starting.get(max(place.numbers[1], place.label[1]) + offset)
            decisions.append(self._decision(ids, index, go_on, stop))
        return AnswerTokens(ids, objects, [decision for decision in decisions if decision], digits)

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _write(self, labels: list[str]) -> str:
        return self.codec.encode([_BOX] * len(labels), labels, _SIZE, _SIZE).text + self.tokenizer.eos_token

    @staticmethod
    def _digit(spans: list[tuple[int, int]], starting: dict[int, int], at: int) -> int:
        """The number of the token that is the one digit at `at`."""
        index = starting.get(at)
        if index is None or spans[index] != (at, at + 1):
            raise UserError(
                "the tokeniser joins digits, so a coordinate has no digits to learn from. Use a Qwen tokeniser, or "
                "leave out the losses and noise objects that need them."
            )
        return index

    def _after_label(self, label: str) -> tuple[int, int, int]:
        """(where, in characters from the object's end, the token after it starts; that token where another object
        follows; and where none does)."""
        if label not in self._after:
            text = self._write([label])
            one, spans = self._tokenize(text)
            two, _ = self._tokenize(self._write([label, label]))
            [place] = self.codec.decode(text.removesuffix(self.tokenizer.eos_token), _SIZE, _SIZE).places
            parting = _parting(one, two)
            offset = spans[parting][0] - max(place.numbers[1], place.label[1])
            self._after[label] = offset, two[parting], one[parting]
        return self._after[label]

    @staticmethod
    def _decision(ids: list[int], index: int | None, go_on: int, stop: int) -> Decision | None:
        """None where neither token stands there: the next object's letters have been joined with it."""
        if index is None or ids[index] not in (go_on, stop):
            return None
        return Decision(index, go_on, stop, ids[index] == go_on)


def _parting(a: list[int], b: list[int]) -> int:
    """The first position at which two lists differ."""
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
