"""Tables with a row for each image: which fields hold boxes and classes. Fields that the user does not name are inferred from
the table, and the choice is printed."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.problems import join_names
from data_prep.reading.source import Options, Row, Unreadable
from data_prep.reading.values import is_set

_PARENTS: tuple[str, ...] = ("objects", "annotations", "annotation", "instances", "")
_BOXES: tuple[str, ...] = ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes")
_LABELS: tuple[str, ...] = (
    "category_name", "class_name", "label_name", "category", "categories", "label", "labels", "class", "classes", "name",
    "names", "category_id", "class_id", "label_id",
)  # fmt: skip
IGNORE = ("ignore", "iscrowd", "is_crowd", "difficult")
_CLASS_NUMBERS = ("category_id", "class_id", "label_id")  # repeat the class, so they are not kept as attributes

Columns = dict[str, Any]  # objects as parallel lists


@dataclass(frozen=True)
class Fields:
    """The fields of boxes and classes. `parent` is the field that holds the objects, as rows or as parallel lists; "" if the
    table's row itself holds the lists."""

    parent: str
    bbox: str
    label: str

    def __str__(self) -> str:
        prefix = f"{self.parent}." if self.parent else ""
        return f"boxes from {prefix}{self.bbox}, classes from {prefix}{self.label}"


def choose_fields(rows: list[dict[str, Any]], source: Path, options: Options) -> Fields:
    """The fields that the user names; else usual fields of the first row that has objects, which are printed.

    Raises UserError if no field fits.
    """
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
            columns = _object_columns(row, parent) or {}
            lists = {name for name, values in columns.items() if isinstance(values, list)}
            bbox, label = (next((name for name in known if name in lists), "") for known in (boxes, labels))
            if bbox and label:
                fields = Fields(parent, bbox, label)
                print(f"{source}: {fields}", file=sys.stderr)
                return fields
    example = f" The first row has {join_names(rows[0])}." if rows else ""
    raise UserError(
        f"{source}: found no field with boxes and classes.{example} Name them: --bbox-field objects.bbox "
        "--label-field objects.category."
    )


def _object_columns(row: dict[str, Any], parent: str) -> Columns | None:
    """The objects of a row as parallel lists; {} if there are none, None if the field holds neither rows nor lists."""
    objects = row.get(parent) if parent else row
    if not objects:
        return {}
    if isinstance(objects, list) and all(isinstance(thing, dict) for thing in objects):
        names = dict.fromkeys(name for thing in objects for name in thing)
        return {name: [thing.get(name) for thing in objects] for name in names}
    return objects if isinstance(objects, dict) else None


def read_objects(
    row: dict[str, Any], fields: Fields, class_names: list[str] | None, warnings: list[str]
) -> list[Row] | Unreadable:
    """The objects of a table's row. `class_names` are the names of numbered classes. A line is added to `warnings` for each
    column that is left out."""
    columns = _object_columns(row, fields.parent)
    if columns is None:
        return Unreadable(f"{fields.parent} must be rows or parallel lists, got {row[fields.parent]!r:.100}")
    if columns.get(fields.bbox) is None and columns.get(fields.label) is None:
        return _no_objects(row, fields, columns)
    if fault := _columns_fault(columns, fields):
        return Unreadable(fault)
    boxes, labels = columns[fields.bbox], columns[fields.label]
    attributes = _attribute_columns(columns, fields, warnings)
    rows = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if isinstance(label, list | dict):
            return Unreadable(f"{fields.label} must have one class for each box, got {label!r:.100}")
        extra = {name: values[i] for name, values in attributes.items()}
        marks = [extra.pop(name, False) for name in IGNORE]
        category = _class_name(label, class_names)
        rows.append(Row(box if isinstance(box, list) else [box], category, any(map(is_set, marks)), extra))
    return rows


def _no_objects(row: dict[str, Any], fields: Fields, columns: Columns) -> list[Row] | Unreadable:
    """An empty list; Unreadable if another field of the row has objects, which would be lost."""
    if not any(isinstance(row.get(parent), list | dict) and row[parent] for parent in _PARENTS):
        return []
    where = fields.parent or "the row"
    return Unreadable(f"neither {fields.bbox} nor {fields.label} in {where}, which has {join_names(columns or row)}")


def _columns_fault(columns: Columns, fields: Fields) -> str | None:
    """Why the columns cannot be read as parallel lists, or None."""
    where = fields.parent or "the row"
    if missing := [name for name in (fields.bbox, fields.label) if not isinstance(columns.get(name), list)]:
        shape = "must be rows or parallel lists" if fields.parent else "must hold parallel lists"
        return f"{where} {shape}, with {' and '.join(missing)}"
    lengths = {name: _length(columns[name]) for name in _needed_columns(columns, fields)}
    if len({*lengths.values()}) > 1:
        return f"the columns of {where} differ in length: {lengths}"
    return None


def _needed_columns(columns: Columns, fields: Fields) -> list[str]:
    """The columns that must have a value for each box: boxes, classes and marks of ignored objects."""
    marks = [name for name in columns if name in IGNORE and name not in {fields.bbox, fields.label}]
    if not fields.parent:  # a mark that is not a list belongs to the image
        marks = [name for name in marks if isinstance(columns[name], list)]
    return [fields.bbox, fields.label, *marks]


def _attribute_columns(columns: Columns, fields: Fields, warnings: list[str]) -> Columns:
    """The columns with further attributes of the objects. Those without a value for each box are left out with a warning."""
    names = [name for name in columns if name not in {fields.bbox, fields.label, *_CLASS_NUMBERS}]
    if not fields.parent:  # other fields of the row belong to the image
        names = [name for name in names if name in IGNORE and isinstance(columns[name], list)]
    count = len(columns[fields.bbox])
    for name in names:
        warning = f"{fields.parent}.{name} does not hold a value for each box and is left out"
        if _length(columns[name]) != count and warning not in warnings:
            warnings.append(warning)
    return {name: columns[name] for name in names if _length(columns[name]) == count}


def _length(values: object) -> int | None:
    return len(values) if isinstance(values, list) else None


def _class_name(label: object, class_names: list[str] | None) -> str:
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if class_names is not None and isinstance(label, int) and 0 <= label < len(class_names):
        return class_names[label].strip()
    return "" if label is None else str(label).strip()
