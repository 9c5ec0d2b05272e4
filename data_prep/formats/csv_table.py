"""CSV: a row for each object, several rows a picture; one file, or one for each split.

With a header, columns are known by their names. Without one, rows are
`filename,xmin,ymin,xmax,ymax,class` or TensorFlow's
`filename,width,height,class,xmin,ymin,xmax,ymax`. The class may be absent where --default-class
names it. A row whose box fields are empty stands for an empty image. Objects that are marked in
a column `ignore`, `iscrowd` or `difficult` are ignored.
"""

import csv
import re
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.reading.files import annotation_files, image_finder_for, image_name, is_set, number, stated_size
from data_prep.reading.names import split_of
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.table_fields import IGNORE

_NAMES = {
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


def recognise(sample: Sample) -> str | None:
    heads = [(path, cells) for path, cells in sample.csv_heads if "region_attributes" not in cells]
    tables = (path for path, cells in heads if len(cells) >= len(_PLAIN) or {"image", *_BOX} <= _named(cells).keys())
    return next((f"{path} has a row for each object" for path in tables), None)


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["*.csv"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings)
    for file, split in files:
        _read_file(file, split, source, options, found)
    return found


def _read_file(file: Path, split: str | None, source: Path, options: Options, found: Source) -> None:
    lines = read_lines(file)
    if not lines:
        raise UserError(f"{file} is empty. It needs a row for each object.")
    columns = _header_columns(file, lines[0][1], options)
    if columns is None:
        columns = _columns_without_header(file, [cells for _, cells in lines], options)
    else:
        _warn_of_unread(lines[0][1], columns, found)
        lines = lines[1:]
    pictures = image_finder_for(file, source, options)
    items: dict[tuple[str, str | None], Item] = {}
    unknown_splits: set[str] = set()
    for line_number, cells in lines:
        if len(cells) <= max(columns.values()):
            found.errors.append(f"{file}:{line_number}: {len(cells)} columns, {max(columns.values()) + 1} are needed")
            continue
        row = {key: cells[index].strip() for key, index in columns.items()}
        if not row["image"]:
            found.errors.append(f"{file}:{line_number}: no file name")
            continue
        own = split_of(row["split"]) if row.get("split") else split
        if row.get("split") and not own:
            unknown_splits.add(row["split"])
        if (row["image"], own) not in items:
            picture = pictures.find(row["image"])
            name = image_name(row["image"], picture, file, source)
            size = stated_size(row.get("width"), row.get("height"))
            items[row["image"], own] = Item(name, str(picture), [], own, size)
        if any(row[edge] for edge in _BOX):
            ignore = any(is_set(row.get(mark)) for mark in IGNORE)
            box = [number(row[edge]) for edge in _BOX]
            items[row["image"], own].rows.append(Row(box, row.get("class", ""), ignore))
    found.items.extend(items.values())
    if unknown_splits:
        words = ", ".join(sorted(unknown_splits))
        found.warnings.append(f"{file}: as a split, {words:.200} is none of train, validation and test")


def _warn_of_unread(header: list[str], columns: dict[str, int], found: Source) -> None:
    unread = [cell.strip() for i, cell in enumerate(header) if cell.strip() and i not in columns.values()]
    warning = f"columns that are not read: {', '.join(unread)}"
    if unread and warning not in found.warnings:  # the files of all splits have the same
        found.warnings.append(warning)


def header_words(cells: list[str]) -> list[str]:
    """The names of columns; VIA 1 puts a # before the first."""
    return [cell.strip().removeprefix("#") for cell in cells]


def delimiter_of(line: str) -> str:
    """Whichever separator a file's first line has most of."""
    return max(",;\t", key=line.count)


def read_lines(file: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not blank."""
    csv.field_size_limit(2**31 - 1)  # the outline of a polygon may stand in one cell
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter_of(first), strict=True)
            try:
                return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
            except csv.Error as error:
                raise UserError(f"{file}:{reader.line_num}: not CSV: {error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text ({error}). Save the file as UTF-8.") from None


def _named(cells: list[str]) -> dict[str, int]:
    """{what: column} of the cells that are understood as names of columns."""
    words = [re.sub(r"[\s\-]+", "_", cell.strip().lower()) for cell in cells]
    names = dict(_NAMES)
    if "x0" in words:  # x0, y0, x1, y1: here x1 is the right edge
        names |= {"x0": ("x0",), "y0": ("y0",), "x1": ("x1",), "y1": ("y1",)}
    columns = {}
    for key, spellings in names.items():
        if spelling := next((spelling for spelling in spellings if spelling in words), None):
            columns[key] = words.index(spelling)
    return columns


def _header_columns(file: Path, cells: list[str], options: Options) -> dict[str, int] | None:
    """{what: column} from a header; None where the first row is none: it holds the four numbers of a box, or it names no
    column, and holds a number or nothing somewhere."""
    if sum(isinstance(number(cell), int | float) for cell in cells) >= len(_BOX):
        return None  # though the class may be called as a column is, such as `left`
    columns = _named(cells)
    named = any(edge in columns for edge in _BOX) or ("image" in columns and "class" in columns)
    if not named and not all(cell.strip() and isinstance(number(cell), str) for cell in cells):
        return None
    if missing := [key for key in _needed(options) if key not in columns]:
        wanted = [f"{_MEANING.get(key, key)}: {', '.join(_NAMES[key])}" for key in missing]
        remedy = " Where all objects are of one class, name it with --default-class." if "class" in missing else ""
        raise UserError(
            f"{file}: the header {','.join(cells)} lacks columns. Boxes are read by their four edges (width and height are those "
            f"of the picture).{remedy} Understood names are:",
            wanted,
        )
    return columns


def _needed(options: Options) -> tuple[str, ...]:
    return _PLAIN[:-1] if options.default_class else _PLAIN


def _columns_without_header(file: Path, rows: list[list[str]], options: Options) -> dict[str, int]:
    """The order of columns, told from the first complete row by the place of the one that is no number."""
    example = next((cells for cells in rows if all(cell.strip() for cell in cells)), rows[0])
    text_columns = [i for i, cell in enumerate(example[1:], 1) if cell.strip() and isinstance(number(cell), str)]
    for order, texts in ((_PLAIN, [5]), (_PLAIN, []), (_TENSORFLOW, [3]), (_needed(options), [])):
        if len(example) == len(order) and text_columns == texts:
            return {key: i for i, key in enumerate(order)}
    header = ",".join(_NAMES[key][0] for key in _PLAIN)
    raise UserError(f"{file}: cannot tell the columns of {','.join(example)}. Add a header, such as {header}.")
