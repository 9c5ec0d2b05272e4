"""Which classes a data set has, in which order, and under which names."""

from boxtune.records import label_problem
from data_prep.source import Item, Options, Source, problem


def settle_classes(found: Source, items: dict[str, Item], options: Options) -> tuple[list[str], list[str]]:
    """(classes, errors): the classes asked for, else the source's own in its order and then any others by name.

    Renames the items' objects. Errors are unknown names in --rename or --classes, and names that no answer can hold.
    """
    rows = [row for item in items.values() for row in item.rows]
    for row in rows:
        row.category = row.category or options.default_class
    known = {*found.classes, *(row.category for row in rows)}
    errors = [
        f"--rename: no class {name!r}; there are {_listed(known)}" for name in options.rename if name not in known
    ]
    for row in rows:
        row.category = options.rename.get(row.category, row.category)
    stated = [options.rename.get(name, name) for name in found.classes]
    present = list(dict.fromkeys([*stated, *sorted({row.category for row in rows})]))
    unknown = [name for name in options.classes if name not in present]
    errors += [f"--classes: no class {name!r}; there are {_listed(present)}" for name in unknown]
    if not present and not found.errors:
        errors.append("there is neither an object nor a class name, so that there is nothing to ask for")
    classes = options.classes or present
    return classes, errors + _name_errors(classes, items)


def _name_errors(classes: list[str], items: dict[str, Item]) -> list[str]:
    first = {row.category: item_id for item_id, item in reversed(items.items()) for row in item.rows}
    faults = {name: fault for name in classes if (fault := label_problem(name))}
    return [
        f"{fault} (first in {first.get(name, 'the list of classes')}); mend it, or use "
        f"{'--rename' if name.strip() else '--default-class NAME'}"
        for name, fault in faults.items()
    ]


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


def filter_objects(items: dict[str, Item], classes: list[str]) -> list[dict]:
    """Drop the objects that --classes does not name, and list them."""
    problems = []
    for item_id, item in items.items():
        others = [row.category for row in item.rows if row.category not in classes]
        problems += [problem(item_id, "other_class", category, "object dropped") for category in others]
        item.rows = [row for row in item.rows if row.category in classes]
    return problems
