"""Detects responses that loop: the same sequence of tokens three times in a row, usually one or two objects repeated forever."""

from collections.abc import Sequence

# Lengths of a repeated sequence, in tokens: from about one object to several. No correct object is long enough to contain
# three repetitions of eight tokens.
LOOP_LENGTHS = range(8, 129)
# Responses are checked each time they have grown by this many tokens.
LOOK_EVERY = 16


def repeats(tokens: Sequence[object]) -> bool:
    """Whether the tokens end with one sequence three times in a row."""
    end = len(tokens)
    longest = min(LOOP_LENGTHS.stop - 1, end // 3)
    return any(
        tokens[end - 2 * length :] == tokens[end - 3 * length : end - length]
        for length in range(LOOP_LENGTHS.start, longest + 1)
    )


def loop_end(tokens: Sequence[object]) -> int | None:
    """The number of tokens after which the check finds a loop, or None if it finds none."""
    for end in range(LOOK_EVERY, len(tokens) + 1, LOOK_EVERY):
        if repeats(tokens[max(0, end - 3 * LOOP_LENGTHS.stop) : end]):
            return end
    return None
