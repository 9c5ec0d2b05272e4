"""Which classes a dataset has, in which order, and under which names."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from boxtune.common.problems import join_names
from boxtune.data.record_checks import description_problems, label_problem
from data_prep.reading.source import Options, Row, Source, problem


class Classes(NamedTuple):
    """`names` are the classes of the dataset in their order; `errors` abort the conversion."""

    names: list[str]
    errors: list[str]


def class_of(category: str, options: Options) -> str:
    """The class that the user wants for a category of the source, which is empty if the source gives none."""
    category = category or options.default_class
    return options.rename.get(category, category)


def choose_classes(found: Source, categories: dict[str, str], options: Options) -> Classes:
    """The classes of --classes; without it the source's own in its order, then all others by name.

    `categories` is {category of at least one object, as the source writes it: the first id that has it}. Errors are
    unknown names in --rename, --classes or --descriptions, and texts that cannot be used in a response or question.
    """
    first_id: dict[str, str] = {}
    for category, item_id in categories.items():
        first_id.setdefault(class_of(category, options), item_id)
    if len(first_id) > 1:
        first_id.pop("", None)  # objects without a class are dropped, unless all are: then --default-class is missing
    stated = [options.rename.get(name, name) for name in found.classes]
    present = list(dict.fromkeys([*stated, *sorted(first_id)]))
    names = options.classes or present

    known = {*found.classes, *(category or options.default_class for category in categories)}
    errors = [_unknown("--rename", name, known) for name in options.rename if name not in known]
    errors += [_unknown("--classes", name, present) for name in options.classes if name not in present]
    errors += [f"--{problem}" for problem in description_problems(options.descriptions, names)]
    if not present and not found.errors:
        errors.append("the source has neither objects nor class names, so there is nothing to ask for")
    return Classes(names, errors + _name_errors(names, first_id))


def _unknown(option: str, name: str, known: Iterable[str]) -> str:
    return f"{option}: unknown class {name!r}; known: {join_names(sorted(known)) or 'none'}"


def _name_errors(names: list[str], first_id: dict[str, str]) -> list[str]:
    """The names that cannot be used in a response, each with the first image that has it."""
    errors = []
    for name in names:
        if fault := label_problem(name):
            where = first_id.get(name, "the list of classes")
            remedy = "--rename" if name.strip() else "--default-class NAME"
            errors.append(f"{fault} (first in {where}); fix it, or use {remedy}")
    return errors


def keep_classes(
    item_id: str, rows: list[Row], classes: list[str], options: Options
) -> tuple[list[Row], list[dict[str, Any]]]:
    """(rows of the wanted classes under their final names and rows of every class, problems for the rows that are dropped)."""
    kept, problems = [], []
    for row in rows:
        if row.every_class:
            kept.append(row)
            continue
        row.category = class_of(row.category, options)
        if row.category in classes:
            kept.append(row)
        elif not row.category:
            problems.append(problem(item_id, "no_class", row.box, "object dropped"))
        else:
            problems.append(problem(item_id, "other_class", row.category, "object dropped"))
    return kept, problems
