"""The tokens of a response that box losses and noise objects need: the digits of each box, and the decisions.

A decision is the token that continues to another object or ends the response, one before each object and one after the last.
The two alternatives depend on the tokenizer, and on the label where the tokenizer joins the label's last character with the
text that closes the object. They are found by encoding short responses and comparing their tokens.
"""

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from boxtune.answers.codecs import Codec
from boxtune.common.errors import UserError

_NUMBER = re.compile(r"[0-9]+")

# A box and an image size, both valid for every codec, for the short responses that are encoded and compared here.
_BOX = [100, 100, 500, 500]
_SIZE = (1000, 1000)

Span = tuple[int, int]  # (start, end) in characters


@dataclass(frozen=True)
class Decision:
    """The token at position `index` is `go_on` if the response continues with another object (`goes_on`), else `stop`."""

    index: int
    go_on: int
    stop: int
    goes_on: bool


@dataclass(frozen=True)
class ObjectTokens:
    """Token positions of one object.

    numbers: those of the digits of each of its numbers (four for a box, two for a point). label: those of its label text.
    name: the label.
    """

    numbers: list[list[int]]
    label: list[int]
    name: str


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens of one response. All positions count from its first token.

    ids: token ids, including the end token. digits: {position: value} of the digits in the numbers of all objects.
    """

    ids: list[int]
    objects: list[ObjectTokens]
    decisions: list[Decision]
    digits: dict[int, int]


@dataclass(frozen=True)
class _Alternatives:
    """The two tokens of a decision. `offset`: where they start, in characters after the end of the object before them."""

    offset: int
    go_on: int
    stop: int


class AnswerTokenizer:
    """Tokenizes responses of one codec, each with its end token, and locates their objects and decisions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codec: Codec):
        self.tokenizer = tokenizer
        self.codec = codec
        empty, _ = self._tokenize(self._example([]))
        one, _ = self._tokenize(self._example(["object"]))
        self._first_index = _first_difference(empty, one)
        self._first_go_on, self._first_stop = one[self._first_index], empty[self._first_index]
        self._after: dict[tuple[str, str | None], _Alternatives] = {}

    def __call__(self, answer: str, input_size: tuple[int, int]) -> AnswerTokens:
        """The tokens of `answer`, as the codec wrote it and without its end token.

        `input_size` is the (height, width) of the resized input. Raises UserError if the tokenizer does not give every digit
        its own token, because box losses and noise objects need the digits.
        """
        text = answer + self.tokenizer.eos_token
        ids, spans = self._tokenize(text)
        decoded = self.codec.decode(answer, input_size, input_size)
        starts = {start: i for i, (start, _) in enumerate(spans)}
        digits: dict[int, int] = {}
        objects = []
        decisions = [self._decision(ids, self._first_index, self._first_go_on, self._first_stop)]
        captions = decoded.captions or [None] * len(decoded.labels)
        for place, label, caption in zip(decoded.places, decoded.labels, captions, strict=True):
            numbers = []
            for number in _NUMBER.finditer(text, *place.numbers):
                numbers.append([self._digit_position(spans, starts, at) for at in range(*number.span())])
                digits |= zip(numbers[-1], map(int, number.group()), strict=True)
            objects.append(ObjectTokens(numbers, _overlapping(spans, place.label), label))
            after = self._alternatives_after(label, caption)
            index = starts.get(place.end + after.offset)
            decisions.append(self._decision(ids, index, after.go_on, after.stop))
        return AnswerTokens(ids, objects, [decision for decision in decisions if decision], digits)

    def _tokenize(self, text: str) -> tuple[list[int], list[Span]]:
        """(token ids, the characters that each token covers)."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _example(self, labels: list[str], caption: str | None = None) -> str:
        """A response with one object per label, each with the caption, and its end token."""
        captions = [caption] * len(labels)
        return self.codec.encode([_BOX] * len(labels), labels, _SIZE, _SIZE, captions).text + self.tokenizer.eos_token

    @staticmethod
    def _digit_position(spans: list[Span], starts: dict[int, int], at: int) -> int:
        """The position of the token that is exactly the digit at character `at`."""
        index = starts.get(at)
        if index is None or spans[index] != (at, at + 1):
            raise UserError(
                "the tokenizer joins digits, but box losses and noise objects need one token per digit. Use a Qwen "
                "tokenizer, or turn off the box losses and noise_objects."
            )
        return index

    def _alternatives_after(self, label: str, caption: str | None) -> _Alternatives:
        """The alternatives of the decision after an object with this label and caption."""
        if (label, caption) not in self._after:
            text = self._example([label], caption)
            one, spans = self._tokenize(text)
            two, _ = self._tokenize(self._example([label, label], caption))
            [place] = self.codec.decode(text.removesuffix(self.tokenizer.eos_token), _SIZE, _SIZE).places
            index = _first_difference(one, two)
            self._after[label, caption] = _Alternatives(spans[index][0] - place.end, two[index], one[index])
        return self._after[label, caption]

    @staticmethod
    def _decision(ids: list[int], index: int | None, go_on: int, stop: int) -> Decision | None:
        """None if neither alternative is at `index`, because the tokenizer joined it with the text of the next object."""
        if index is None or ids[index] not in (go_on, stop):
            return None
        return Decision(index, go_on, stop, ids[index] == go_on)


def _overlapping(spans: list[Span], characters: Span) -> list[int]:
    """Positions of the tokens that cover any of the characters."""
    return [i for i, (start, end) in enumerate(spans) if start < characters[1] and end > characters[0]]


def _first_difference(a: list[int], b: list[int]) -> int:
    """The first position at which two lists differ."""
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
