"""Tables with a row for each picture: which fields hold boxes and classes, and in which convention the boxes are.

What the user does not name is guessed from the names of the fields and from the boxes themselves, and said.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from boxtune.errors import UserError
from data_prep.files import is_set
from data_prep.pictures import upright_size
from data_prep.placing import LAYOUTS, contradicting
from data_prep.shapes import are_numbers
from data_prep.source import Item, Options, Row, Source

_PARENTS = ("objects", "annotations", "annotation", "instances", "")
_BOXES = ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes")
_LABELS = (
    "category_name", "class_name", "label_name", "category", "categories", "label", "labels", "class", "classes", "name",
    "names", "category_id", "class_id", "label_id",
)  # fmt: skip
_IGNORE = ("ignore", "iscrowd", "is_crowd", "difficult")
# In pixels nobody writes y first. In fractions TensorFlow does, and since a picture's fractions know no width and height, such
# boxes fit as x-first ones too: then the user must say.
_GUESSED = ("xywh", "xyxy", "cxcywh")
_GUESSED_FRACTIONS = (*_GUESSED, "yxyx")
_WITHIN_UNIT = 1.02  # rounding apart, fractions are at most 1
_NUMBERED = ("category_id", "class_id", "label_id")  # say what the class's name says, and are not kept beside it
_TOLERATED = 0.01  # share of boxes that may contradict a convention that is guessed


@dataclass(frozen=True)
class Fields:
    """`parent` holds the objects, as rows or as lists side by side; where it is "", the table's row holds the lists."""

    parent: str
    bbox: str
    label: str

    def __str__(self) -> str:
        prefix = f"{self.parent}." if self.parent else ""
        return f"boxes from {prefix}{self.bbox}, classes from {prefix}{self.label}"


def choose_fields(rows: list[dict], source, options: Options) -> Fields:
    """As the user says, else as the first row says that has objects. Raises UserError where nothing fits."""
    if options.bbox_field and options.label_field:
        parent, _, bbox = options.bbox_field.rpartition(".")
        return Fields(parent, bbox, options.label_field.removeprefix(f"{parent}."))
    for row in rows:
        for parent in (options.bbox_field.rpartition(".")[0],) if options.bbox_field else _PARENTS:
            columns = object_columns(row.get(parent) if parent else row)
            if not columns:
                continue
            names = ((options.bbox_field.rpartition(".")[2],) if options.bbox_field else _BOXES, _LABELS)
            if options.label_field:
                names = (names[0], (options.label_field.removeprefix(f"{parent}."),))
            lists = {name for name, values in columns.items() if isinstance(values, list)}
            bbox, label = (next((name for name in known if name in lists), None) for known in names)
            if bbox and label:
                return Fields(parent, bbox, label)
    example = f" The first row has {', '.join(rows[0])}." if rows else ""
    raise UserError(
        f"{source}: no field with boxes and classes was found.{example} Name them: --bbox-field objects.bbox "
        "--label-field objects.category."
    )


def object_columns(objects) -> dict[str, list] | None:
    """Objects as lists side by side, from those or from rows; None where they are neither, {} where there are none."""
    if not objects:
        return {}
    if isinstance(objects, list) and all(isinstance(thing, dict) for thing in objects):
        return {key: [thing.get(key) for thing in objects] for key in dict.fromkeys(k for t in objects for k in t)}
    return objects if isinstance(objects, dict) else None


def read_objects(row: dict, fields: Fields, names: list[str] | None) -> list[Row] | str:
    """The objects of a table's row, or what keeps them from being read. `names` are those of numbered classes."""
    columns = object_columns(row.get(fields.parent) if fields.parent else row)
    neither = columns is not None and columns.get(fields.bbox) is None and columns.get(fields.label) is None
    if neither and any(row.get(parent) for parent in _PARENTS):
        return f"neither {fields.bbox} nor {fields.label} in {fields.parent or 'the row'}, which has {', '.join(columns or row)}"
    if neither:
        return []
    if columns is None:
        return f"{fields.parent} must be rows, or lists side by side, got {row[fields.parent]!r:.100}"
    if missing := [name for name in (fields.bbox, fields.label) if not isinstance(columns.get(name), list)]:
        return f"{fields.parent or 'the row'} must be rows, or lists side by side, with {' and '.join(missing)}"
    boxes, labels = columns[fields.bbox], columns[fields.label]
    # Beside the row's own lists stand other things of the picture; beside the objects' lists nothing else does.
    others = {key: values for key, values in columns.items() if key not in {fields.bbox, fields.label, *_NUMBERED}}
    if not fields.parent:
        others = {key: values for key, values in others.items() if key in _IGNORE and isinstance(values, list)}
    lengths = {key: len(values) if isinstance(values, list) else None for key, values in columns.items()}
    if len({lengths[key] for key in (fields.bbox, fields.label, *others)}) > 1:
        return f"the columns of {fields.parent or 'the row'} differ in length: {lengths}"
    rows = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        extra = {key: values[i] for key, values in others.items()}
        marks = [extra.pop(key, False) for key in _IGNORE]
        if isinstance(label, list | dict):
            return f"{fields.label} must have one class for each box, got {label!r:.100}"
        label = int(label) if isinstance(label, float) and label.is_integer() else label
        numbered = names is not None and isinstance(label, int) and 0 <= label < len(names)
        category = names[label] if numbered else "" if label is None else str(label)
        ignore = any(map(is_set, marks))
        rows.append(Row(box if isinstance(box, list) else [box], category.strip(), ignore, extra))
    return rows


def settle_convention(found: Source, options: Options) -> None:
    """Set the source's layout and unit from its boxes, or as the user says, and say which.

    Raises UserError with three examples where no convention fits, or several do.
    """
    pairs = [(item, row.box) for item in found.items for row in item.rows if are_numbers(row.box, 4)]
    within = sum(all(abs(value) <= _WITHIN_UNIT for value in box) for _, box in pairs)
    found.fractions = bool(pairs) and within >= (1 - _TOLERATED) * len(pairs)
    unit = "fractions" if found.fractions else "pixels"
    if options.bbox_format or not pairs:
        found.layout = options.bbox_format or found.layout
        print(f"boxes: {found.layout} in {unit}", file=sys.stderr)
        return
    sizes = _sizes({item.picture: item for item, _ in pairs}, found.fractions)
    pairs = [(item, box) for item, box in pairs if item.picture in sizes]
    if not pairs:
        return  # not one of the pictures can be read, which is reported with all other pictures
    boxes, sides = [box for _, box in pairs], [sizes[item.picture] for item, _ in pairs]
    guessed = _GUESSED_FRACTIONS if found.fractions else _GUESSED
    against = {layout: contradicting(LAYOUTS[layout](boxes), sides) for layout in guessed}
    fitting = [layout for layout in guessed if against[layout].mean() <= _TOLERATED]
    counts = ", ".join(f"{layout} {len(pairs) - wrong.sum()}" for layout, wrong in against.items())
    said = f"boxes in {unit}; of {len(pairs)}, fit as {counts}"
    if len(fitting) == 1:
        found.layout = fitting[0]
        print(f"{said}: read as {found.layout} (--bbox-format says otherwise)", file=sys.stderr)
        return
    best = min(against, key=lambda layout: against[layout].sum())
    examples = [pair for pair, wrong in zip(pairs, against[best], strict=True) if wrong or fitting][:3]
    raise UserError(
        f"{'Several conventions fit' if fitting else 'No convention fits'} ({said}). Say which it is with --bbox-format "
        f"{{{','.join(LAYOUTS)}}}." + (" Examples:" if fitting else f" Against {best}:"),
        [f"{item.name} {sizes[item.picture]}: {[round(value, 4) for value in box]}" for item, box in examples],
    )


def _sizes(items: dict[Path, Item], fractions: bool) -> dict[Path, tuple[int, int]]:
    """(width, height) of the pictures that can be opened, upright, or turned where the table states that size; 1 × 1 where
    boxes are fractions of them."""
    if fractions:
        return dict.fromkeys(items, (1, 1))
    sizes = {path: upright_size(path) for path in items}
    return {
        path: item.size if item.size == sizes[path][::-1] else sizes[path]
        for path, item in items.items()
        if sizes[path]
    }
