"""Answers that repeat themselves: one sequence of tokens three times over, as an object or two that are written forever."""

from collections.abc import Sequence

# Tokens of what is repeated, at least an object's and at most those of several. No box can hold so long a sequence thrice.
LOOP_LENGTHS = range(8, 129)
# An answer is looked at whenever it has grown by so many tokens; a loop lasts until then.
LOOK_EVERY = 16


def repeats(tokens: Sequence) -> bool:
    """Whether the last tokens are one sequence three times over."""
    end = len(tokens)
    return any(
        tokens[end - 2 * period :] == tokens[end - 3 * period : end - period]
        for period in range(LOOP_LENGTHS.start, min(LOOP_LENGTHS.stop, end // 3 + 1))
    )


def loop_end(tokens: Sequence) -> int | None:
    """How many tokens an answer has when it is seen to repeat itself, None where it never does."""
    ends = range(LOOK_EVERY, len(tokens) + 1, LOOK_EVERY)
    return next((end for end in ends if repeats(tokens[max(0, end - 3 * LOOP_LENGTHS.stop) : end])), None)
