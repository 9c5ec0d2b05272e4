"""Lists of problems: at most twenty examples, then counts by kind."""

import pickle

import pytest

from boxtune.common.errors import UserError, shown
from boxtune.common.problems import Problem, join_names, list_problems


def test_up_to_twenty_problems_are_all_listed():
    problems = [f"line {i}: bad" for i in range(20)]
    assert list_problems(problems) == [f"  - line {i}: bad" for i in range(20)]
    assert list_problems([]) == [] and str(UserError("none")) == "none"


def test_of_more_problems_twenty_are_listed_and_the_kinds_are_counted():
    ids = ["line 3: x", "a: b", "ünï 7", "dog"]
    problems = [Problem(f"line {i}", "not JSON (Expecting value: line 1 column 1 (char 0))") for i in range(4000)]
    problems += [Problem(f"line {i}", Problem(ids[i % 4], f"score {i} is not a number")) for i in range(30)]
    problems += [Problem(f"line {i}", Problem(ids[i % 4], f"bbox {shown([i, 2.5, 'x'])} is not")) for i in range(3)]
    problems.append(Problem(ids[1], "no prediction; predict it, or use --allow-missing"))
    error = UserError(f"p: {len(problems)} problem(s):", problems)
    assert error.problems == problems
    first, *lines = str(error).splitlines()
    assert first == "p: 4034 problem(s):"
    examples, counts = lines[:20], lines[20:]
    assert examples[:17] == [f"  - {problem}" for problem in problems[:17]]
    # One example of every kind, at its place.
    assert examples[17:] == [f"  - {problems[i]}" for i in (4000, 4030, 4033)]
    assert counts == [
        "  … and 4014 more. All 4034 by kind:",
        "     4000 × not JSON (Expecting value: line 1 column 1 (char 0))",
        "       30 × score … is not a number",
        "        3 × bbox … is not",
        "        1 × no prediction; predict it, or use --allow-missing",
    ]


def test_the_twenty_first_problem_is_counted():
    *examples, more, count = list_problems(["d.json: bad"] * 21)
    assert len(examples) == 20 and "and 1 more. All 21 by kind:" in more and count.endswith("21 × bad")


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (lambda i: f"/data/a b/{i}.json: images[{i}] needs id and file_name, got {{'id': {i}, 'x': [{i}]}}",
         "images… needs id and file_name, got …"),
        (lambda i: f"d.json: annotations[{i}]: image_id {i} is not in the list x",
         "annotations…: image_id … is not in the list x"),
        (lambda i: f"img {i}: missing: /data/{i}.jpg", "missing: …"),
        (lambda i: f"img{i}: /data/x/{i}.jpg: corrupt: image file is truncated ({i} bytes not processed)",
         "…: corrupt: image file is truncated …"),
        (lambda i: f"d.json: class 'it\\'s {i}' is {-i / 7} of \"{i}\"", "class … is … of …"),
        (lambda i: f"d.json: needs a list, got {{'id': 'number {'x' * i}", "needs a list, got …"),
        (lambda i: f"line {i}: bbox [{i}, 2] is not [x0, y0] with x0 < 200", "bbox … is not [x0, y0] with x0 < 200"),
        (lambda i: f"a: score {i} is from 0 to 1 (or 5) in 0…1; divide by 100",
         "score … is from 0 to 1 (or 5) in 0…1; divide by 100"),
        (lambda i: "a: needs one of ['a', 'b']", "needs one of ['a', 'b']"),
        (lambda i: f"{i}.txt:{i}: label {i}e-5", "label …"),
    ],
)  # fmt: skip
def test_values_and_places_are_not_part_of_a_kind(one, kind):
    *_, count = list_problems([one(i) for i in range(50)])
    assert count == f"       50 × {kind}"


def test_bare_names_have_no_kinds_and_many_kinds_are_summed():
    assert list_problems([f"photo {'x' * i}" for i in range(30)])[20:] == ["  … and 10 more."]
    assert list_problems([f"folder/{i}.jpg" for i in range(30)])[20:] == ["  … and 10 more."]
    lines = list_problems([f"a: {'x' * (i // 3)}" for i in range(90)])
    assert len(lines) == 20 + 1 + 20 + 1 and lines[-1] == "       30 × of 10 other kinds"


def test_errors_with_places_can_be_pickled():
    """They come back from worker processes."""
    error = pickle.loads(pickle.dumps(UserError("bad:", [Problem("line 1", Problem("a", "wrong 5"))] * 21)))
    assert error.problems == ["line 1: a: wrong 5"] * 21 and error.problems[0].parts == ("line 1", "a: wrong 5")
    assert "21 × wrong 5" in str(error)


def test_a_hundred_thousand_problems_take_little_time_and_room():
    problems = [Problem(f"line {i}", f"bbox {shown(['y' * i, i])} is not") for i in range(100_000)]
    assert len(str(UserError("bad:", problems))) < 5000


@pytest.mark.parametrize(("count", "text"), [(0, ""), (2, "0, 1"), (20, ", 19"), (365, ", 19 and 345 more")])
def test_a_sentence_names_at_most_twenty(count, text):
    joined = join_names(str(number) for number in range(count))
    assert joined == text if count < 3 else joined.endswith(text)
