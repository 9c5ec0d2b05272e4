"""Tables with a row for each picture: which fields hold boxes and classes. What the user does not name is guessed, and said."""

import sys
from dataclasses import dataclass

from boxtune.common.errors import UserError
from data_prep.reading.files import is_set
from data_prep.reading.source import Options, Row

_PARENTS = ("objects", "annotations", "annotation", "instances", "")
_BOXES = ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes")
_LABELS = (
    "category_name", "class_name", "label_name", "category", "categories", "label", "labels", "class", "classes", "name",
    "names", "category_id", "class_id", "label_id",
)  # fmt: skip
IGNORE = ("ignore", "iscrowd", "is_crowd", "difficult")
_NUMBERED = ("category_id", "class_id", "label_id")  # say what the class's name says, and are not kept beside it


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
    """As the user says, else as the first row says that has objects, which is printed. Raises UserError where nothing fits."""
    parents, boxes, labels = _PARENTS, _BOXES, _LABELS
    if options.bbox_field:
        parent, _, bbox = options.bbox_field.rpartition(".")
        parents, boxes = (parent,), (bbox,)
    if options.label_field:
        labels = tuple(options.label_field.removeprefix(f"{parent}.") for parent in parents)
    if options.bbox_field and options.label_field:
        return Fields(parents[0], boxes[0], labels[0])
    for row in rows:
        for parent in parents:
            columns = object_columns(row.get(parent) if parent else row) or {}
            lists = {name for name, values in columns.items() if isinstance(values, list)}
            bbox, label = (next((name for name in known if name in lists), None) for known in (boxes, labels))
            if bbox and label:
                fields = Fields(parent, bbox, label)
                print(f"{source}: {fields}", file=sys.stderr)
                return fields
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


def read_objects(row: dict, fields: Fields, names: list[str] | None, warnings: list[str]) -> list[Row] | str:
    """The objects of a table's row, or what keeps them from being read. `names` are those of numbered classes; `warnings`
    gets a line for each column that is left out."""
    columns = object_columns(row.get(fields.parent) if fields.parent else row)
    neither = columns is not None and columns.get(fields.bbox) is None and columns.get(fields.label) is None
    if neither and any(isinstance(row.get(parent), list | dict) and row[parent] for parent in _PARENTS):
        return f"neither {fields.bbox} nor {fields.label} in {fields.parent or 'the row'}, which has {', '.join(columns or row)}"
    if neither:
        return []
    if columns is None:
        return f"{fields.parent} must be rows, or lists side by side, got {row[fields.parent]!r:.100}"
    if missing := [name for name in (fields.bbox, fields.label) if not isinstance(columns.get(name), list)]:
        return f"{fields.parent or 'the row'} must be rows, or lists side by side, with {' and '.join(missing)}"
    boxes, labels = columns[fields.bbox], columns[fields.label]
    # Beside the row's own lists stand other things of the picture, and even beside the objects' lists a count may stand.
    others = {key: values for key, values in columns.items() if key not in {fields.bbox, fields.label, *_NUMBERED}}
    if not fields.parent:
        others = {key: values for key, values in others.items() if key in IGNORE and isinstance(values, list)}
    lengths = {key: len(values) if isinstance(values, list) else None for key, values in columns.items()}
    needed = [fields.bbox, fields.label, *(key for key in others if key in IGNORE)]
    if len({lengths[key] for key in needed}) > 1:
        return (
            f"the columns of {fields.parent or 'the row'} differ in length: { {key: lengths[key] for key in needed} }"
        )
    for key in [key for key in others if lengths[key] != len(boxes)]:
        del others[key]
        warning = f"{fields.parent}.{key} holds no value for each box and is left out"
        if warning not in warnings:
            warnings.append(warning)
    rows = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        extra = {key: values[i] for key, values in others.items()}
        marks = [extra.pop(key, False) for key in IGNORE]
        if isinstance(label, list | dict):
            return f"{fields.label} must have one class for each box, got {label!r:.100}"
        label = int(label) if isinstance(label, float) and label.is_integer() else label
        numbered = names is not None and isinstance(label, int) and 0 <= label < len(names)
        category = names[label] if numbered else "" if label is None else str(label)
        ignore = any(map(is_set, marks))
        rows.append(Row(box if isinstance(box, list) else [box], category.strip(), ignore, extra))
    return rows
