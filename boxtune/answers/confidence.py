"""How sure a model was of each object that it wrote, from the probabilities of the tokens that it wrote it with.

Every scorer gives a number from 0 to 1 for one object. p is the probability that the model gave to a token that it chose:

    coordinates  geometric mean of p over the digits of the box
    label        product of p over the tokens of the label
    presence     product of p over the tokens between the object before and this one's numbers: the choice to name
                 one more object, since all others there are certain
    spread       1 / (1 + s), s being the mean over the edges of the standard deviation that the digits' distributions
                 give to an edge, in shares of the box's side
    minimum      the least p of a digit or of a token of the label
    product      coordinates × label × presence × spread

docs/confidence.md compares them; DEFAULT is what `score` is where nobody says otherwise.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from boxtune.answers.codecs import Place

SCORERS = ("coordinates", "label", "presence", "spread", "minimum", "product")
DEFAULT = "product"
CALIBRATED = "calibrated"  # the default, as a share of hits
RANKINGS = (*SCORERS, CALIBRATED)  # what predictions may be ranked by

_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class TokenScores:
    """The tokens of one answer. `spans`: (T, 2) where each stands in the text, in characters. `log_probs`: (T,) of the chosen
    tokens. `digit_log_probs`: (T, 10) of the digits 0 to 9 in their place."""

    spans: np.ndarray
    log_probs: np.ndarray
    digit_log_probs: np.ndarray

    def within(self, start: int, end: int) -> np.ndarray:
        """The numbers of the tokens that have a character in [start, end)."""
        return np.flatnonzero((self.spans[:, 0] < end) & (self.spans[:, 1] > start))

    def digits(self, text: str, start: int, end: int) -> list[int]:
        """Those of them that are one digit."""
        return [i for i in self.within(start, end) if _NUMBER.fullmatch(text, *self.spans[i])]


def score_objects(text: str, places: list[Place | None], tokens: TokenScores) -> dict[str, list[float]]:
    """{scorer: a score for each object}, for objects in the order of the text. An object without a place scores 0, and so
    does what has no number: a server may leave out a token's probability, and numbers may be too long for one."""
    rows, before = [], 0
    for place in places:
        rows.append(_score(text, place, before, tokens) if place else dict.fromkeys(SCORERS, 0.0))
        before = max(place.numbers[1], place.label[1]) if place else before
    return {name: [round(row[name], 6) if math.isfinite(row[name]) else 0.0 for row in rows] for name in SCORERS}


def _score(text: str, place: Place, before: int, tokens: TokenScores) -> dict[str, float]:
    digits = tokens.digits(text, *place.numbers)
    label = tokens.within(*place.label)
    opening = tokens.within(before, place.numbers[0])
    opening = opening[~np.isin(opening, [*digits, *label])]
    box, name = tokens.log_probs[digits], tokens.log_probs[label]
    scores = {
        "coordinates": math.exp(box.mean()) if len(box) else 0.0,
        "label": math.exp(name.sum()),
        "presence": math.exp(tokens.log_probs[opening].sum()),
        "spread": 1 / (1 + _relative_spread(text, place, tokens)),
    }
    least = math.exp(np.min([*box, *name])) if len(box) else 0.0
    return scores | {"minimum": least, "product": math.prod(scores.values())}


def _relative_spread(text: str, place: Place, tokens: TokenScores) -> float:
    """Mean standard deviation of the numbers, each in shares of the box's side along its axis; of a point, of 1000."""
    numbers = list(_NUMBER.finditer(text, *place.numbers))
    values = [float(number.group()) for number in numbers]
    sides = [values[2] - values[0], values[3] - values[1]] * 2 if len(values) == 4 else [1000.0] * len(values)
    shares = []
    for number, side in zip(numbers, sides, strict=True):
        digits = tokens.digits(text, number.start(), number.end())
        probabilities = np.exp(tokens.digit_log_probs[digits])
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        mean = probabilities @ np.arange(10)
        variances = probabilities @ np.arange(10) ** 2 - mean**2
        place_values = 10.0 ** (number.end() - tokens.spans[digits, 1])
        deviation = math.sqrt(np.maximum(0.0, variances @ place_values**2))  # which, unlike max, keeps NaN
        shares.append(deviation / max(side, 1.0))
    return sum(shares) / len(shares) if shares else math.inf
