"""Candidate phrases: a closed list of labels that the system prompt offers, and to which generated labels are snapped.

A label that is no candidate becomes the nearest one if it is near enough. Similarity is difflib's ratio, 2 · M / T: of the T
characters of both texts, M match in order. Case and width of characters do not count.
"""

from collections.abc import Container, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import lru_cache

from boxtune.answers.codecs import Answer, fold_name

# A label snaps to a candidate of at least this similarity: one more letter in a word of four ("screws", "screw" has 0.91).
CUTOFF = 0.8
# Each snapped label adds this to the problems of its prediction.
SNAPPED = "snapped"


def candidate_sentence(candidates: Sequence[str]) -> str:
    """What the system prompt says about them."""
    return f"Use only these labels: {', '.join(candidates)}."


def snap(answer: Answer, candidates: Sequence[str], kept: Container[str] = ()) -> Answer:
    """The answer with each label that is neither a candidate nor in `kept` replaced by the nearest candidate, if one is near."""
    known = tuple(candidates)
    labels = [label if label in known or label in kept else nearest(label, known) or label for label in answer.labels]
    snapped = sum(before != after for before, after in zip(answer.labels, labels, strict=True))
    return replace(answer, labels=labels, problems=[*answer.problems, *[SNAPPED] * snapped])


@lru_cache(maxsize=2000)
def nearest(label: str, candidates: tuple[str, ...]) -> str | None:
    """The candidate most similar to the label; None if none reaches CUTOFF, or if two are equally similar."""
    scores = {candidate: _similarity(fold_name(label), fold_name(candidate)) for candidate in candidates}
    best = max(scores.values(), default=0.0)
    found = [candidate for candidate, score in scores.items() if score == best]
    return found[0] if best >= CUTOFF and len(found) == 1 else None


def _similarity(a: str, b: str) -> float:
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    # A bound from the lengths alone: a model may write labels of thousands of characters.
    return matcher.ratio() if matcher.real_quick_ratio() >= CUTOFF else 0.0
