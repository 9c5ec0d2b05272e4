"""CSV: a row for each object, so an image may have several rows; one file, or one for each split,
or one .csv or .txt file for each image, named after it (ICDAR).

If there is a header, columns are identified by their names: four edges, four corners, a corner
or center and the sides, or a list in a column `bbox`. Otherwise rows are
`filename,xmin,ymin,xmax,ymax,class` or TensorFlow's
`filename,width,height,class,xmin,ymin,xmax,ymax`. Four corners are replaced by the surrounding
box. The class column may be absent if --default-class is given. A row with empty box columns
stands for an image without objects. Objects that are marked in a column `ignore`, `iscrowd` or
`difficult` are ignored. OpenImages' tables are read in fractions, with the names in its
class-descriptions file. A column `caption` holds a text about each object.
"""

from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.problems import join_names
from data_prep.formats.csv_columns import (
    EDGES,
    MARKS,
    Columns,
    box_keys,
    boxes_in,
    columns_without_header,
    header_columns,
    is_open_images,
    named_columns,
)
from data_prep.formats.csv_per_image import find_files_of_images, has_file_of_image, read_files_of_images
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files, source_files
from data_prep.reading.csv_files import first_cells, read_lines
from data_prep.reading.image_finder import ImageFinder, image_finder_for, image_name
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.split_names import split_of
from data_prep.reading.spool import Spool
from data_prep.reading.values import is_set, number, stated_size

_MIN_CELLS = 6  # of a row: the image, a box and a class


def recognise(sample: Sample) -> str | None:
    heads = [(path, cells) for path, cells in sample.csv_heads if "region_attributes" not in cells]
    tables = (path for path, cells in heads if len(cells) >= _MIN_CELLS or _names_boxes(cells))
    if path := next(tables, None):
        return f"{path} has a row for each object"
    path = has_file_of_image(sample)
    return f"{path} has rows of corners, and there is an image of that name" if path else None


def _names_boxes(cells: list[str]) -> bool:
    columns = named_columns(cells)
    return "image" in columns and bool(box_keys(columns))


def read(source: Path, options: Options) -> Source:
    if files_of_images := find_files_of_images(source, options):
        return read_files_of_images(files_of_images, source, options)
    files, warnings, folder = find_annotation_files(source, ["*.csv"], options, _holds_boxes)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings, folder=folder)
    units = {is_open_images(first_cells(file.path)) for file in files}
    if len(units) > 1:
        raise UserError(
            f"{source} has tables of OpenImages and others, whose boxes have other units. Pass one of them."
        )
    found.fractions = units == {True}
    names = _class_descriptions(source, options) if found.fractions else {}
    layouts = {_read_file(file, names, options, found) for file in files}
    if "bbox" in layouts:
        if len(layouts) > 1:
            raise UserError(f"{source}: some tables have a column bbox, and others have edges. Pass one of them.")
        found.layout, found.fractions = options.bbox_format, None
    return found


def _holds_boxes(path: Path) -> bool:
    """Whether a table can be one of boxes, rather than one of images or class names."""
    cells = first_cells(path)
    has_numbers = sum(isinstance(number(cell), int | float) for cell in cells) >= len(EDGES)
    columns = named_columns(cells)
    return has_numbers or bool(box_keys(columns)) or not ("image" in columns or cells[0].startswith("/m/"))


def _class_descriptions(source: Path, options: Options) -> dict[str, str]:
    """{code: class name} of OpenImages, in tables without a header whose rows are `/m/011k07,Tortoise`."""
    folder = source if source.is_dir() else source.parent
    tables = [path for path in source_files(folder, options) if path.suffix.lower() == ".csv"]
    codes = [path for path in tables if first_cells(path)[0].startswith("/m/")]
    return {cells[0].strip(): cells[1].strip() for path in codes for _, cells in read_lines(path) if len(cells) == 2}


def _read_file(file: AnnotationFile, names: dict[str, str], options: Options, found: Source) -> str:
    """Adds the items of a table, and returns the first column of its boxes."""
    lines = read_lines(file.path)
    if not lines:
        raise UserError(f"{file} is empty. It needs a row for each object.")
    columns = header_columns(file, lines[0][1], options)
    if columns is None:
        columns = columns_without_header(file, [cells for _, cells in lines], options)
    else:
        _warn_of_unread(lines[0][1], columns, found)
        lines = lines[1:]
    keys = box_keys(columns)
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
        if any(row[key] for key in keys):
            items[row["image"], split].rows += _read_objects(row, keys, names)
    found.items.extend(items.values())
    if unknown_splits:
        words = join_names(sorted(unknown_splits))
        found.warnings.append(f"{file}: unknown splits: {words}. Known are train, validation and test")
    return keys[0]


def _make_item(row: dict[str, str], file: AnnotationFile, split: str | None, images: ImageFinder) -> Item:
    image_path = images.find(row["image"])
    size = stated_size(row.get("width"), row.get("height"))
    return Item(image_name(row["image"], image_path, file), str(image_path), [], split, size)


def _read_objects(row: dict[str, str], keys: list[str], names: dict[str, str]) -> list[Row]:
    ignore = any(is_set(row.get(mark)) for mark in MARKS)
    category = names.get(row.get("class", ""), row.get("class", ""))
    extra = {"caption": row["caption"]} if row.get("caption") else {}
    return [Row(box, category, ignore, extra) for box in boxes_in(row, keys)]


def _warn_of_unread(header: list[str], columns: Columns, found: Source) -> None:
    unread = [cell.strip() for i, cell in enumerate(header) if cell.strip() and i not in columns.values()]
    warning = f"columns that are not read: {join_names(unread)}"
    if unread and warning not in found.warnings:  # the files of all splits usually have the same columns
        found.warnings.append(warning)
