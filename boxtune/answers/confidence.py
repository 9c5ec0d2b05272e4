"""Confidence of a model in each object of its response, from the probabilities of the tokens it generated.

Every scorer gives an object a number from 0 to 1. p is the probability of a generated token:

    coordinates  geometric mean of p over the digits of the box
    label        product of p over the tokens of the label
    presence     product of p over the tokens between the previous object and this object's numbers. All of them are certain
                 but the choice to name one more object.
    spread       1 / (1 + s). The distributions of an edge's digits give the edge a standard deviation; s is the mean of
                 the edges' deviations, in shares of the box's side.
    minimum      the smallest p of a digit or of a token of the label
    product      coordinates × label × presence × spread

docs/confidence.md compares them. DEFAULT is the one that becomes `score`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxtune.answers.codecs import Place

SCORERS = ("coordinates", "label", "presence", "spread", "minimum", "product")
DEFAULT = "product"
CALIBRATED = "calibrated"  # DEFAULT as the expected share of hits
VERIFY, VERIFY_CALIBRATED = "verify", "verify_calibrated"  # boxtune/answers/verifier.py
RANKINGS = (*SCORERS, CALIBRATED, VERIFY, VERIFY_CALIBRATED)  # what predictions may be ranked by

_NUMBER = re.compile(r"[0-9]+")
_POINT_SIDE = 1000.0  # a point has no side to compare its deviation with


@dataclass(frozen=True)
class TokenScores:
    """The T tokens of a response.

    spans: (T, 2) start and end of each token in the text, in characters.
    log_probs: (T,) of the generated tokens.
    digit_log_probs: (T, 10) of the digits 0 to 9 at the positions of the tokens.
    """

    spans: np.ndarray
    log_probs: np.ndarray
    digit_log_probs: np.ndarray

    def within(self, start: int, end: int) -> np.ndarray:
        """The indices of the tokens that have a character in [start, end)."""
        return np.flatnonzero((self.spans[:, 0] < end) & (self.spans[:, 1] > start))

    def digits(self, text: str, start: int, end: int) -> list[int]:
        """The indices of those tokens within [start, end) that consist of digits."""
        return [int(i) for i in self.within(start, end) if _NUMBER.fullmatch(text, *self.spans[i])]


def score_objects(text: str, places: Sequence[Place], tokens: TokenScores) -> dict[str, list[float]]:
    """{scorer: one score per object}. `places` are those of the objects, in the order of the text.

    A score that is not finite becomes 0: a server may not report the probabilities of some
    tokens, and coordinates may have too many digits for a float.
    """
    rows = []
    previous_end = 0
    for place in places:
        rows.append(_score_object(text, place, previous_end, tokens))
        previous_end = place.end
    return {name: [rounded_score(row[name]) for row in rows] for name in SCORERS}


def rounded_score(score: float) -> float:
    """Six significant digits; 0 if it is not finite. Not six decimals: scores of a model that has learned little are a few
    millionths, and AP depends on their order."""
    return float(f"{score:.6g}") if math.isfinite(score) else 0.0


def _score_object(text: str, place: Place, previous_end: int, tokens: TokenScores) -> dict[str, float]:
    """{scorer: score}. `previous_end` is where the previous object ends in the text, in characters."""
    digits = tokens.digits(text, *place.numbers)
    label = tokens.within(*place.label)
    before = tokens.within(previous_end, place.numbers[0])
    before = before[~np.isin(before, [*digits, *label])]
    digit_log_probs, label_log_probs = tokens.log_probs[digits], tokens.log_probs[label]
    has_digits = len(digits) > 0
    factors = {
        "coordinates": math.exp(digit_log_probs.mean()) if has_digits else 0.0,
        "label": math.exp(label_log_probs.sum()),
        "presence": math.exp(tokens.log_probs[before].sum()),
        "spread": 1 / (1 + _relative_spread(text, place, tokens)),
    }
    minimum = math.exp(np.min([*digit_log_probs, *label_log_probs])) if has_digits else 0.0
    return factors | {"minimum": minimum, "product": math.prod(factors.values())}


def _relative_spread(text: str, place: Place, tokens: TokenScores) -> float:
    """Mean standard deviation of an object's numbers, each relative to the side of the box along its axis."""
    numbers = list(_NUMBER.finditer(text, *place.numbers))
    if not numbers:
        return math.inf
    values = [float(number.group()) for number in numbers]
    sides = [values[2] - values[0], values[3] - values[1]] * 2 if len(values) == 4 else [_POINT_SIDE] * len(values)
    spreads = [
        _standard_deviation(text, number, tokens) / max(side, 1.0) for number, side in zip(numbers, sides, strict=True)
    ]
    return sum(spreads) / len(spreads)


def _standard_deviation(text: str, number: re.Match[str], tokens: TokenScores) -> float:
    """Of one number, whose digits are taken as independent. NaN if a probability is unknown."""
    digits = tokens.digits(text, number.start(), number.end())
    probabilities = np.exp(tokens.digit_log_probs[digits])  # (D, 10)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    means = probabilities @ np.arange(10)
    variances = probabilities @ np.arange(10) ** 2 - means**2
    place_values = 10.0 ** (number.end() - tokens.spans[digits, 1])
    variance = variances @ place_values**2
    return math.sqrt(np.maximum(0.0, variance))  # rounding can make it negative; unlike max, np.maximum keeps NaN
