"""CSV: a row for each object, so an image may have several rows; one file, or one for each split.

If there is a header, columns are identified by their names. Otherwise rows are
`filename,xmin,ymin,xmax,ymax,class` or TensorFlow's
`filename,width,height,class,xmin,ymin,xmax,ymax`. The class column may be absent if
--default-class is given. A row with empty box columns stands for an image without objects.
Objects that are marked in a column `ignore`, `iscrowd` or `difficult` are ignored.
"""

import re
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.csv_files import read_lines
from data_prep.reading.image_finder import ImageFinder, image_finder_for, image_name
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.split_names import split_of
from data_prep.reading.spool import Spool
from data_prep.reading.table_fields import IGNORE
from data_prep.reading.values import is_set, number, stated_size

_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("filename", "file_name", "image", "image_path", "image_name", "img", "path", "file", "image_id"),
    "x0": ("xmin", "x_min", "x0", "x1", "left", "bbox_x1"),
    "y0": ("ymin", "y_min", "y0", "y1", "top", "bbox_y1"),
    "x1": ("xmax", "x_max", "x2", "right", "bbox_x2"),
    "y1": ("ymax", "y_max", "y2", "bottom", "bbox_y2"),
    "class": ("class_name", "category_name", "label_name", "class", "label", "category", "name"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "split": ("split", "subset", "set"),
    **{mark: (mark,) for mark in IGNORE},
}
_MEANING = {"x0": "left edge", "y0": "top edge", "x1": "right edge", "y1": "bottom edge"}
_BOX = ("x0", "y0", "x1", "y1")
_PLAIN = ("image", *_BOX, "class")
_TENSORFLOW = ("image", "width", "height", "class", *_BOX)

Columns = dict[str, int]  # {key of _NAMES: index of the column}


def recognise(sample: Sample) -> str | None:
    heads = [(path, cells) for path, cells in sample.csv_heads if "region_attributes" not in cells]
    tables = (path for path, cells in heads if len(cells) >= len(_PLAIN) or {"image", *_BOX} <= _named(cells).keys())
    return next((f"{path} has a row for each object" for path in tables), None)


def read(source: Path, options: Options) -> Source:
    files, warnings = find_annotation_files(source, ["*.csv"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings)
    for file in files:
        _read_file(file, options, found)
    return found


def _read_file(file: AnnotationFile, options: Options, found: Source) -> None:
    lines = read_lines(file.path)
    if not lines:
        raise UserError(f"{file} is empty. It needs a row for each object.")
    columns = _header_columns(file, lines[0][1], options)
    if columns is None:
        columns = _columns_without_header(file, [cells for _, cells in lines], options)
    else:
        _warn_of_unread(lines[0][1], columns, found)
        lines = lines[1:]
    images = image_finder_for(file, options)
    items: dict[tuple[str, str | None], Item] = {}
    unknown_splits: set[str] = set()
    for line_number, cells in lines:
        if len(cells) <= max(columns.values()):
            needed = max(columns.values()) + 1
            found.errors.append(f"{file}:{line_number}: has {len(cells)} columns, needs {needed}")
            continue
        row = {key: cells[index].strip() for key, index in columns.items()}
        if not row["image"]:
            found.errors.append(f"{file}:{line_number}: no file name")
            continue
        split = split_of(row["split"]) if row.get("split") else file.split
        if row.get("split") and not split:
            unknown_splits.add(row["split"])
        if (row["image"], split) not in items:
            items[row["image"], split] = _make_item(row, file, split, images)
        if any(row[edge] for edge in _BOX):
            items[row["image"], split].rows.append(_read_object(row))
    found.items.extend(items.values())
    if unknown_splits:
        words = ", ".join(sorted(unknown_splits))
        found.warnings.append(f"{file}: unknown splits: {words:.200}. Known are train, validation and test")


def _make_item(row: dict[str, str], file: AnnotationFile, split: str | None, images: ImageFinder) -> Item:
    image_path = images.find(row["image"])
    size = stated_size(row.get("width"), row.get("height"))
    return Item(image_name(row["image"], image_path, file), str(image_path), [], split, size)


def _read_object(row: dict[str, str]) -> Row:
    ignore = any(is_set(row.get(mark)) for mark in IGNORE)
    return Row([number(row[edge]) for edge in _BOX], row.get("class", ""), ignore)


def _warn_of_unread(header: list[str], columns: Columns, found: Source) -> None:
    unread = [cell.strip() for i, cell in enumerate(header) if cell.strip() and i not in columns.values()]
    warning = f"columns that are not read: {', '.join(unread)}"
    if unread and warning not in found.warnings:  # the files of all splits usually have the same columns
        found.warnings.append(warning)


# ---- columns ---------------------------------------------------------------------------------------------------------


def _named(cells: list[str]) -> Columns:
    """The columns whose names are known."""
    words = [re.sub(r"[\s\-]+", "_", cell.strip().lower()) for cell in cells]
    names = dict(_NAMES)
    if "x0" in words:  # the edges are x0, y0, x1, y1, so x1 is the right edge
        names |= {edge: (edge,) for edge in _BOX}
    columns = {}
    for key, spellings in names.items():
        if spelling := next((spelling for spelling in spellings if spelling in words), None):
            columns[key] = words.index(spelling)
    return columns


def _header_columns(file: AnnotationFile, cells: list[str], options: Options) -> Columns | None:
    """The columns that the header names; None if the first row is not a header.

    It is not one if it contains the four numbers of a box, or if it names no known column and has a cell that is empty or a
    number. Raises UserError if a header lacks columns.
    """
    if sum(isinstance(number(cell), int | float) for cell in cells) >= len(_BOX):
        return None  # even if a class has the name of a column, such as `left`
    columns = _named(cells)
    is_named = any(edge in columns for edge in _BOX) or ("image" in columns and "class" in columns)
    if not is_named and not all(cell.strip() and isinstance(number(cell), str) for cell in cells):
        return None
    if missing := [key for key in _needed(options) if key not in columns]:
        wanted = [f"{_MEANING.get(key, key)}: {', '.join(_NAMES[key])}" for key in missing]
        remedy = " If all objects have the same class, name it with --default-class." if "class" in missing else ""
        raise UserError(
            f"{file}: the header {','.join(cells)} lacks columns. A box needs its four edges (width and height are the size "
            f"of the image).{remedy} Known names are:",
            wanted,
        )
    return columns


def _needed(options: Options) -> tuple[str, ...]:
    return _PLAIN[:-1] if options.default_class else _PLAIN


def _columns_without_header(file: AnnotationFile, rows: list[list[str]], options: Options) -> Columns:
    """The columns, inferred from the first complete row by the position of the cell that is not a number."""
    example = next((cells for cells in rows if all(cell.strip() for cell in cells)), rows[0])
    text_columns = [i for i, cell in enumerate(example[1:], 1) if cell.strip() and isinstance(number(cell), str)]
    for order, texts in ((_PLAIN, [5]), (_PLAIN, []), (_TENSORFLOW, [3]), (_needed(options), [])):
        if len(example) == len(order) and text_columns == texts:
            return {key: i for i, key in enumerate(order)}
    header = ",".join(_NAMES[key][0] for key in _PLAIN)
    raise UserError(f"{file}: cannot identify the columns of {','.join(example)}. Add a header such as {header}.")
