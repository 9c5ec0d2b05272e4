"""Which classes a data set has, in which order, and under which names."""

from collections.abc import Iterable

from boxtune.data.records import label_problem
from data_prep.pipeline.inspect_images import Inspected
from data_prep.reading.source import Item, Options, Row, Source, problem


def class_of(row: Row, options: Options) -> str:
    """The class of an object under the name that the user wants."""
    category = row.category or options.default_class
    return options.rename.get(category, category)


def settle_classes(found: Source, inspected: Iterable[Inspected], options: Options) -> tuple[list[str], list[str]]:
    """(classes, errors): the classes asked for, else the source's own in its order and then any others by name.

    Errors are unknown names in --rename or --classes, and names that no answer can hold.
    """
    known, first = {*found.classes}, {}
    for item_id, item, _ in inspected:
        for row in item.rows:
            known.add(row.category or options.default_class)
            first.setdefault(class_of(row, options), item_id)
    errors = [
        f"--rename: no class {name!r}; there are {_listed(known)}" for name in options.rename if name not in known
    ]
    stated = [options.rename.get(name, name) for name in found.classes]
    present = list(dict.fromkeys([*stated, *sorted(first)]))
    unknown = [name for name in options.classes if name not in present]
    errors += [f"--classes: no class {name!r}; there are {_listed(present)}" for name in unknown]
    if not present and not found.errors:
        errors.append("there is neither an object nor a class name, so that there is nothing to ask for")
    classes = options.classes or present
    return classes, errors + _name_errors(classes, first)


def _name_errors(classes: list[str], first: dict[str, str]) -> list[str]:
    """Names that no answer can hold, with the first picture that has each."""
    faults = {name: fault for name in classes if (fault := label_problem(name))}
    return [
        f"{fault} (first in {first.get(name, 'the list of classes')}); mend it, or use "
        f"{'--rename' if name.strip() else '--default-class NAME'}"
        for name, fault in faults.items()
    ]


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


def filter_objects(item_id: str, item: Item, classes: list[str], options: Options) -> list[dict]:
    """Name the objects as the user wants, drop those that --classes does not name, and list them."""
    for row in item.rows:
        row.category = class_of(row, options)
    others = [row.category for row in item.rows if row.category not in classes]
    item.rows = [row for row in item.rows if row.category in classes]
    return [problem(item_id, "other_class", category, "object dropped") for category in others]
