"""The columns of a CSV table: which of them hold the image, the class and the box, and the box in a row of cells."""

import json
import re
from typing import Any

from boxtune.common.errors import UserError
from data_prep.reading.annotation_files import AnnotationFile
from data_prep.reading.shapes import are_numbers, box_of_corner, box_of_points
from data_prep.reading.source import Options
from data_prep.reading.table_fields import IGNORE
from data_prep.reading.values import number

Names = dict[str, tuple[str, ...]]  # {key: the spellings of a column}

_NAMES: Names = {
    "image": (
        "filename", "file_name", "image", "image_path", "image_name", "img", "path", "file", "image_id", "imageid",
    ),
    "class": ("class_name", "category_name", "label_name", "labelname", "class", "label", "category", "name"),
    "caption": ("caption",),
    "split": ("split", "subset", "set"),
    "group": ("isgroupof", "is_group_of"),
    **{mark: (mark,) for mark in IGNORE},
}  # fmt: skip
_SIZES: Names = {"width": ("width", "image_width", "img_width"), "height": ("height", "image_height", "img_height")}
EDGES = ("x0", "y0", "x1", "y1")
_EDGE_NAMES: Names = {
    "x0": ("xmin", "x_min", "x0", "x1", "left", "bbox_x1"),
    "y0": ("ymin", "y_min", "y0", "y1", "top", "bbox_y1"),
    "x1": ("xmax", "x_max", "x2", "right", "bbox_x2"),
    "y1": ("ymax", "y_max", "y2", "bottom", "bbox_y2"),
}
_QUAD = tuple(f"quad_{axis}{corner}" for corner in range(4) for axis in "xy")
_CORNER: Names = {"x": ("x", "bbox_x", "box_x", "left"), "y": ("y", "bbox_y", "box_y", "top")}
_NEAR_EDGES: Names = {"x": _EDGE_NAMES["x0"], "y": _EDGE_NAMES["y0"]}
_CENTER: Names = {
    "cx": ("cx", "x_center", "center_x", "xcenter", "bbox_cx"),
    "cy": ("cy", "y_center", "center_y", "ycenter", "bbox_cy"),
}
_OWN_SIDES: Names = {
    "w": ("w", "bbox_w", "box_w", "bbox_width", "box_width"),
    "h": ("h", "bbox_h", "box_h", "bbox_height", "box_height"),
}
_SIDES: Names = {"w": (*_OWN_SIDES["w"], "width"), "h": (*_OWN_SIDES["h"], "height")}  # if no others are there
_LIST: Names = {"bbox": ("bbox", "box", "bounding_box", "bboxes", "boxes")}
_MEANING = {"x0": "left edge", "y0": "top edge", "x1": "right edge", "y1": "bottom edge"}
_PLAIN = ("image", *EDGES, "class")
_OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
# Orders of columns without a header, and which of them hold text (beside the image).
_ORDERS: tuple[tuple[tuple[str, ...], list[int]], ...] = (
    (_PLAIN, [5]),
    (_PLAIN, []),
    (("image", "width", "height", "class", *EDGES), [3]),
    (("image", *_QUAD, "class"), [9]),
    (("image", "class", *_QUAD), [1]),
)
MARKS = (*IGNORE, "group")  # marks of objects that are ignored

Columns = dict[str, int]  # {key: index of the column}


def named_columns(cells: list[str]) -> Columns:
    """The columns whose names are known. Those of the box are four edges, four corners, a list, or a corner or center and the
    sides; `width` and `height` are the sides if the box has no others, else the size of the image."""
    words = _words(cells)
    names = dict(_NAMES)
    sizes = dict(_SIZES)
    box = _box_names(words)
    if "w" in box and not _has(words, _OWN_SIDES["w"]):
        sizes = {key: spellings[1:] for key, spellings in _SIZES.items()}
    columns = {}
    for key, spellings in {**names, **sizes, **box}.items():
        if spelling := next((spelling for spelling in spellings if spelling in words), None):
            columns[key] = words.index(spelling)
    return columns


def _words(cells: list[str]) -> list[str]:
    return [re.sub(r"[\s\-]+", "_", cell.strip().lower()) for cell in cells]


def _box_names(words: list[str]) -> Names:
    """{key of a box column: its known names}, for the kind of box that the header has; the edges if it has none of them."""
    for first in (0, 1):
        corners = [f"{axis}{corner}" for corner in range(first, first + 4) for axis in "xy"]
        if {*corners} <= {*words}:
            return {key: (name,) for key, name in zip(_QUAD, corners, strict=True)}
    edges = dict(_EDGE_NAMES)
    if "x0" in words:  # the edges are x0, y0, x1, y1, so x1 is the right edge
        edges |= {edge: (edge,) for edge in EDGES}
    has_far_edge = any(_has(words, edges[edge]) for edge in ("x1", "y1"))
    if has_far_edge:
        return edges
    if _has(words, _LIST["bbox"]):
        return _LIST
    # Beside xmin and ymin, width and height are those of the image.
    for names in (_CENTER | _SIDES, _CORNER | _SIDES, _NEAR_EDGES | _OWN_SIDES):
        if all(_has(words, spellings) for spellings in names.values()):
            return names
    return edges


def _has(words: list[str], spellings: tuple[str, ...]) -> bool:
    return any(spelling in words for spelling in spellings)


def is_open_images(cells: list[str]) -> bool:
    """Whether a header is that of OpenImages, whose boxes are in fractions of the image."""
    return {*_words(cells)} >= _OPEN_IMAGES


def box_keys(columns: Columns) -> list[str]:
    """The columns that hold the box; empty if the edges are not complete."""
    for keys in (_QUAD, EDGES, ("bbox",), ("cx", "cy", "w", "h"), ("x", "y", "w", "h")):
        if {*keys} <= columns.keys():
            return list(keys)
    return []


def boxes_in(row: dict[str, str], keys: list[str]) -> list[list[Any]]:
    """The boxes in a row, as four values each: one, unless the row has a list of lists. Other values are returned as they
    are, so that they are listed as a bad box."""
    if keys == ["bbox"]:
        value = _list_in(row["bbox"])
        are_boxes = bool(value) and all(isinstance(entry, list) for entry in value)
        return value if are_boxes else [value] if value else []
    values: list[Any] = [number(row[key]) for key in keys]
    if len(keys) == len(_QUAD):
        return [
            box_of_points([values[i : i + 2] for i in range(0, len(values), 2)]) if are_numbers(values, 8) else values
        ]
    if keys == list(EDGES) or not are_numbers(values, 4):
        return [values]
    x, y, width, height = values
    return [box_of_corner(x - width / 2, y - height / 2, width, height) if keys[0] == "cx" else box_of_corner(*values)]


def _list_in(cell: str) -> list[Any]:
    """The list in a cell, as JSON or as Python and NumPy print it ("[1. 2. 30. 40.]"); the cell itself if it is none."""
    text = cell.strip()
    if text.lower() in {"", "nan", "none", "null", "[]"}:
        return []
    as_json = re.sub(r"(?<=[\d.])\s+(?=[-\d.])", ", ", text.replace("(", "[").replace(")", "]"))
    as_json = re.sub(r"(?<=\d)\.(?=[\s,\]]|$)", ".0", as_json)
    for spelling in (text, as_json, f"[{as_json}]"):
        try:
            value = json.loads(spelling)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return [cell]


def header_columns(file: AnnotationFile, cells: list[str], options: Options, own_image: bool = False) -> Columns | None:
    """The columns that the header names; None if the first row is not a header.

    It is not one if it contains the four numbers of a box, or if it names no known column and has a cell that is empty or a
    number. Raises UserError if a header lacks columns. `own_image`: the file is that of one image, so it need not name it.
    """
    if sum(isinstance(number(cell), int | float) for cell in cells) >= len(EDGES):
        return None  # even if a class has the name of a column, such as `left`
    columns = named_columns(cells)
    has_box = any(key in columns for key in (*EDGES, *_QUAD, "bbox", "w"))
    is_named = has_box or ("image" in columns and "class" in columns)
    if not is_named and not all(cell.strip() and isinstance(number(cell), str) for cell in cells):
        return None
    needed = [key for key in _needed(options) if key not in EDGES or not box_keys(columns)]
    if missing := [key for key in needed if key not in columns and not (own_image and key == "image")]:
        known = _NAMES | _EDGE_NAMES
        wanted = [f"{_MEANING.get(key, key)}: {', '.join(known[key])}" for key in missing]
        remedy = " If all objects have the same class, name it with --default-class." if "class" in missing else ""
        raise UserError(
            f"{file}: the header {','.join(cells)} lacks columns. A box needs its four edges (width and height are the size "
            f"of the image), or x, y, w and h, or a list in a column bbox.{remedy} Known names are:",
            wanted,
        )
    return columns


def _needed(options: Options) -> tuple[str, ...]:
    return _PLAIN[:-1] if options.default_class else _PLAIN


def columns_without_header(file: AnnotationFile, rows: list[list[str]], options: Options) -> Columns:
    """The columns, inferred from the first complete row by the position of the cell that is not a number."""
    example = next((cells for cells in rows if all(cell.strip() for cell in cells)), rows[0])
    text_columns = [i for i, cell in enumerate(example[1:], 1) if cell.strip() and isinstance(number(cell), str)]
    for order, texts in (*_ORDERS, (_needed(options), [])):
        if len(example) == len(order) and text_columns == texts:
            return {key: i for i, key in enumerate(order)}
    header = ",".join(_EDGE_NAMES.get(key, _NAMES.get(key, ("",)))[0] for key in _PLAIN)
    raise UserError(f"{file}: cannot identify the columns of {','.join(example)}. Add a header such as {header}.")
