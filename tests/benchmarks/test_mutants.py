"""The changes that the mutation test makes."""

import ast

from benchmarks.mutants import mutants_of
from tests.helpers.records import ROOT

SOURCE = '''"""Docstring with 1 and True."""
LIMIT: int | None = 3  # an annotation is not changed

def area(box: list[float], scale: float = 2.0) -> float | None:
    if box[0] < box[2] and not box == []:
        return min(box) * scale
    name = f"{box[0] + 1} ä"
    return sum(a - b for a, b in zip(box, box, strict=True)), "ä", name is None
'''


def mutated(path) -> dict[tuple[int, str], str]:
    """{(line, new text): whole source with the change}."""
    source = path.read_bytes()
    return {
        (each.line, each.new): (source[: each.start] + each.new.encode() + source[each.end :]).decode()
        for each in mutants_of(path, "area.py")
    }


def test_each_operator_number_condition_and_result_is_changed(tmp_path):
    path = tmp_path / "area.py"
    path.write_text(SOURCE)
    assert [(line, new) for line, new in sorted(mutated(path)) if line in (2, 4, 6)] == [
        *((2, "(2)"), (2, "(4)"), (4, "(1.0)"), (4, "(3.0)")),
        *((6, "(max)"), (6, "(min(box) / scale)"), (6, "return None")),
    ]
    assert {new for line, new in mutated(path) if line == 5} == {
        *("(box[0] <= box[2])", "(box[0] < box[2] or not box == [])", "(not (box[0] < box[2] and (not box == [])))"),
        *("(box == [])", "(box != [])", "(1)", "(-1)", "(3)"),
    }
    assert [new for line, new in mutated(path) if line == 7] == [], "Python 3.11 does not know where its parts are"
    assert {new for line, new in mutated(path) if line == 8} == {"return None", "(a + b)", "(name is not None)"}
    assert not any("strict=False" in text for text in mutated(path).values())


def test_every_change_is_another_program():
    path = ROOT / "boxtune" / "metrics" / "bootstrap.py"
    programs = [ast.dump(ast.parse(text)) for text in mutated(path).values()]
    assert len(programs) > 30 and ast.dump(ast.parse(path.read_text())) not in programs


def test_a_change_knows_the_function_that_it_is_in(tmp_path):
    path = tmp_path / "area.py"
    path.write_text("@cache\ndef f():\n    return 1\n\nclass A:\n    x = 1\n")
    assert {(each.line, each.function) for each in mutants_of(path, "area.py")} == {(3, 1), (6, 0)}
