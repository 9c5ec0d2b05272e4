"""Responses that repeat themselves."""

import pytest

from boxtune.answers.repetition import loop_end, repeats


@pytest.mark.parametrize("length", [8, 9, 50, 128])
def test_three_repetitions_of_8_to_128_tokens_are_a_loop(length):
    once = list(range(length))
    assert repeats(["start", *once * 3])
    assert not repeats(["start", *once * 2])
    assert not repeats([*once * 3, "end"])
    assert not repeats([*once, "other", *once * 2])


@pytest.mark.parametrize("length", [1, 7, 129])
def test_shorter_and_longer_sequences_are_none(length):
    once = [f"{length}, {i}" for i in range(length)]
    assert not repeats(once * 3)


def test_a_response_is_checked_every_sixteen_tokens():
    once = list(range(10))
    assert loop_end(once * 3) is None, "30 tokens: checked at 16 only"
    assert loop_end(once * 4) == 32
    assert loop_end(["a", "b", *once * 3]) == 32
    assert loop_end(once * 3 + ["other"] + list(range(100, 140))) is None, "no longer at the end when it is checked"
    long = list(range(128))
    assert loop_end(long * 3) == 384 and loop_end(list(range(1000, 1016)) + long * 3) == 400
    assert loop_end([]) is None
