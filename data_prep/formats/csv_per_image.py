"""Tables of one image each, named after it: `x1,y1,x2,y2,x3,y3,x4,y4,text` (ICDAR, gt_img_1.txt), `x0 y0 x1 y1 "text"`
(ICDAR 2013) or `x0,y0,x1,y1,class`."""

import re
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from boxtune.common.files import is_image
from data_prep.formats import visdrone
from data_prep.formats.csv_columns import Columns, box_keys, boxes_in, header_columns, named_columns
from data_prep.reading.annotation_files import AnnotationFile, folder_of, source_files
from data_prep.reading.csv_files import first_cells, read_lines
from data_prep.reading.image_finder import list_unannotated_images
from data_prep.reading.image_pairs import ImagesByStem, key_of
from data_prep.reading.names import relative_name
from data_prep.reading.row_files import begins_with_row
from data_prep.reading.shapes import are_numbers, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_text
from data_prep.reading.values import is_set, number

_PREFIX = re.compile(r"^(gt|res)_", re.IGNORECASE)  # of ICDAR's files
_WORD_ROW = re.compile(r"([-\d.]+)(?:,\s*|\s+)" * 4 + r'"(.*)"')
_DO_NOT_CARE = {"###", "*"}  # ICDAR's text of objects that do not count
_TEXT_CLASS = "text"
_MAX_OPENED = 5  # files of a sample


def has_file_of_image(sample: Sample) -> Path | None:
    """A file of a sample that holds the rows of one image, or None."""
    stems = {key_of(path.stem) for path in sample.files if is_image(path)}
    named = (path for path in sample.files if _is_table(path) and key_of(_stem(path)) in stems)
    return next((path for path in islice(named, _MAX_OPENED) if _holds_rows(path)), None)


def find_files_of_images(source: Path, options: Options) -> dict[Path, Path]:
    """{file of rows: its image, which may be missing}; empty if SOURCE has no such files."""
    if not source.is_dir():
        return {}
    images = ImagesByStem(source, options)
    tables = [path for path in source_files(source, options) if _is_table(path)]
    if not any(_stem(path) in images and _holds_rows(path) for path in tables):
        return {}
    return {path: images.nearest(path, _stem(path)) for path in tables if _stem(path) in images or _holds_rows(path)}


def read_files_of_images(files: dict[Path, Path], source: Path, options: Options) -> Source:
    folder = "" if options.images else folder_of([*files, *files.values()], source)
    found = Source(Spool(options.scratch), layout="xyxy", folder=folder)
    transcribed = 0
    for path, image in files.items():
        item = Item(
            relative_name(image, options.images or source),
            str(image),
            _read_rows(AnnotationFile(path, source), options, found),
        )
        transcribed += any(_TEXT_CLASS in row.extra for row in item.rows)
        found.items.append(item)
    list_unannotated_images(source, options, found)
    if transcribed:
        found.warnings.append(
            f"the text in the last column of {transcribed} file(s) is kept as `text`, and the class of these objects is "
            f"{options.default_class or _TEXT_CLASS}; --default-class NAME changes it"
        )
    return found


def _stem(path: Path) -> str:
    return _PREFIX.sub("", path.stem)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in {".csv", ".txt"}


def _holds_rows(path: Path) -> bool:
    """Whether the first row is a box without the name of an image: at least eight numbers, or four and a class; or a header
    that names a box and no image."""
    cells = first_cells(path)
    columns = named_columns(cells)
    if begins_with_row(path, visdrone.read_row):
        return False
    if begins_with_row(path, partial(_read_word, path)):
        return True
    return _count_numbers(cells) > 0 or (bool(box_keys(columns)) and "image" not in columns)


def _count_numbers(cells: list[str]) -> int:
    """8 for a row that begins with the numbers of four corners, 4 for one of two corners and a class, else 0."""
    numbers = [isinstance(number(cell.strip()), int | float) for cell in cells]
    if len(numbers) >= 8 and all(numbers[:8]):
        return 8
    return 4 if len(numbers) == 5 and all(numbers[:4]) and not numbers[4] else 0


def _read_rows(file: AnnotationFile, options: Options, found: Source) -> list[Row]:
    label = options.default_class or _TEXT_CLASS
    cells = first_cells(file.path)
    is_header = (
        any(cells) and not _count_numbers(cells) and not begins_with_row(file.path, partial(_read_word, file.path))
    )
    if is_header and (columns := header_columns(file, cells, options, own_image=True)):
        return _read_table(file, columns, found)
    rows: list[Row] = []
    for line_number, line in enumerate(read_text(file.path).splitlines(), 1):
        # Not the csv module: a text may contain commas and quotes.
        if word := _read_word(file.path, line.strip(), label):
            rows.append(word)
            continue
        cells = [cell.strip() for cell in line.split(",")]
        count = 8 if _count_numbers(cells[:8]) == 8 else 4
        values = [number(cell) for cell in cells[:count]]
        if not line.strip():
            continue
        if not are_numbers(values, count):
            found.errors.append(
                f"{file}:{line_number}: needs four or eight numbers and a text or class, got {line:.100}"
            )
        elif count == 8:
            box_xyxy = box_of_points([values[i : i + 2] for i in range(0, 8, 2)])
            rows.append(_transcribed(box_xyxy, ",".join(line.split(",")[8:]).strip(), label))
        else:
            rows.append(Row(values, ",".join(cells[4:]).strip('" ')))
    return rows


def _read_word(path: Path, line: str, label: str = _TEXT_CLASS) -> Row | None:
    """The object in a row `x0 y0 x1 y1 "text"` of ICDAR 2013; None for other rows. In the test set, commas stand between
    the numbers, as in a table of classes, which has no prefix in its name."""
    match = _WORD_ROW.fullmatch(line)
    if not match or ("," in line[: match.start(5)] and not _PREFIX.match(path.name)):
        return None
    return _transcribed([number(match[i]) for i in range(1, 5)], match[5], label)


def _transcribed(box_xyxy: list[Any], text: str, label: str) -> Row:
    return Row(box_xyxy, label, text in _DO_NOT_CARE, {_TEXT_CLASS: text})


def _read_table(file: AnnotationFile, columns: Columns, found: Source) -> list[Row]:
    keys, rows = box_keys(columns), []
    for line_number, cells in read_lines(file.path)[1:]:
        if len(cells) <= max(columns.values()):
            found.errors.append(f"{file}:{line_number}: has {len(cells)} columns, needs {max(columns.values()) + 1}")
            continue
        row = {key: cells[index].strip() for key, index in columns.items()}
        ignore = any(is_set(row.get(mark)) for mark in ("ignore", "iscrowd", "difficult"))
        extra = {"caption": row["caption"]} if row.get("caption") else {}
        rows += [Row(box, row.get("class", ""), ignore, extra) for box in boxes_in(row, keys)]
    return rows
