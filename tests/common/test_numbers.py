"""Numbers as people read them."""

from boxtune.common.numbers import format_difference, format_interval, format_number, format_ranges


def test_fractions_have_three_decimals_and_counts_none():
    assert [format_number(value) for value in (0.12349, 1.0, 7, 0, None)] == ["0.123", "1.000", "7", "0", "–"]


def test_differences_have_a_sign():
    assert format_difference(0.5, 0.7504) == "+0.250"
    assert format_difference(0.75, 0.5) == "-0.250"
    assert format_difference(3, 1) == "-2" and format_difference(1, 3) == "+2"
    assert format_difference(1, 1.5) == format_difference(0.5, 1) == "+0.500"
    assert format_difference(0.50001, 0.5) == "+0.000", "and not −0"
    assert format_difference(None, 1) == format_difference(1, None) == "–"


def test_intervals():
    assert format_interval([0.41249, 0.5379]) == "0.412 to 0.538"
    assert format_interval(None) == format_interval([]) == ""


def test_ranges():
    assert format_ranges([0, 2, 3, 4, 7, 8]) == "0, 2-4, 7-8"
    assert format_ranges([]) == ""
