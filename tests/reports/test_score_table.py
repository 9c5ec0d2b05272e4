"""metrics.json as tables for a terminal."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from boxtune.metrics.scoring import score
from boxtune.reports.score_table import format_class_table, format_table
from tests.helpers.scoring import a_prediction, a_record


def render(table, width=160):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def row_of(text, title):
    """The cells of the row that contains `title`, without the table's lines."""
    line = next(line for line in text.splitlines() if title in line)
    return [cell.strip() for cell in line.split("│")[1:-1]]


def numbers_in(text):
    """All numbers of a table, in order, once per line and cell."""
    return re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.])", text)


LONG_CLASSES = [f"{letter} label with exactly sixty characters and many words in it {letter}" for letter in "xyz"]
LONG_RUNS = ["runs/a_recipe_with_a_long_name-overlay-seed0/final", "Qwen/Qwen2.5-VL-72B-Instruct-with-a-long-name"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "runs", [LONG_RUNS, ["base", "tuned"], LONG_RUNS[:1]], ids=["long names", "short names", "one run"]
)
@pytest.mark.parametrize("joined", [False, True], ids=["words", "one word"])
def test_tables_with_long_names_fit_a_terminal_without_cutting_numbers(runs, width, joined):
    classes = [name.replace(" ", "_") if joined else name for name in LONG_CLASSES]
    assert {len(name) for name in classes} == {60}
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], labels=classes)
    metrics = score([record], [a_prediction(boxes=[[0, 0, 10, 10]], labels=classes[:1])], classes)
    for row in metrics["per_class"].values():
        row |= {"truth": 123456, "tp": 123456, "fp": 234567, "fn": 345678}
    for table in (format_table, format_class_table):
        text = render(table(dict.fromkeys(runs, metrics)), width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        # At a width of 500 nothing is cut, so a cut number would differ.
        wide = render(table(dict.fromkeys(runs, metrics)), 500)
        assert sorted(numbers_in(text)) == sorted(numbers_in(wide))
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if "123456" in line and "345678" in line and "label" in line]
    assert len(starts) == 3
    heights = np.diff([*starts, len(lines) - 1])
    assert max(heights) <= 3, "a class takes three lines at most"
    for name in runs:
        assert len(runs) == 1 or name in text  # a run's name is never broken


def test_tables_show_runs_side_by_side_with_their_difference():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10]], labels=["cat", "[bold]dog"])
    classes = ["cat", "[bold]dog"]
    base = score([record], [a_prediction(problems=["unparsable"])], classes)
    tuned = score([record], [a_prediction(boxes=[[0, 0, 10, 10]])], classes)
    text = render(format_table({"base": base, "tuned": tuned}))
    assert row_of(text, "AP50") == ["AP50", "0.000", "0.500", "+0.500"]
    assert row_of(text, "false negatives") == ["false negatives", "2", "1", "-1"]
    assert row_of(text, "precision") == ["precision", "–", "1.000", "–"]
    assert row_of(text, "unparsable") == ["unparsable responses", "1", "0", "-1"]
    alone = render(format_table({"tuned": tuned}))
    assert "difference" not in alone
    assert row_of(alone, "AP50") == ["AP50", "0.500", "0.500 to 0.500"]  # the only image, in every draw
    assert row_of(alone, "AP75") == ["AP75", "0.500", ""]
    assert row_of(render(format_table({"a": base, "b": tuned, "c": tuned})), "AP50") == [
        "AP50",
        "0.000",
        "0.500",
        "0.500",
    ]
    assert row_of(render(format_class_table({"tuned": tuned})), "dog") == [
        "[bold]dog",
        "1",
        "0.000",
        "0.000",
        "0",
        "0",
        "1",
    ]


def test_a_name_is_a_heading_up_to_twelve_characters():
    metrics = score([a_record(boxes=[[0, 0, 9, 9]])], [a_prediction(boxes=[[0, 0, 9, 9]])], ["cat"])
    assert "twelve_chars" in render(format_table({"twelve_chars": metrics, "base": metrics})).splitlines()[1]
    assert render(format_table({"thirteen_char": metrics, "base": metrics})).startswith("A: thirteen_char")
    assert "95 % interval" in render(format_table({"base": metrics}))
