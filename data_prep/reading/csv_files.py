"""CSV files of a source: their rows, and the names in their header."""

import csv
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import check_is_text
from data_prep.reading.text_files import encoding_fault

_LONGEST = 100_000  # characters of a row; a text file may consist of one long line


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not blank. Raises UserError if the file is not CSV or not UTF-8."""
    check_is_text(path)
    with open(path, "rb") as file:
        if b"\0" in file.read(_LONGEST):
            raise UserError(encoding_fault(path) or f"{path}: not text: it contains NUL characters.")
    csv.field_size_limit(2**31 - 1)  # one cell may hold the whole outline of a polygon
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter_of(first), strict=True)
            try:
                return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
            except csv.Error as error:
                raise UserError(f"{path}:{reader.line_num}: not CSV: {error}.") from None
    except UnicodeDecodeError:
        raise UserError(encoding_fault(path) or f"{path}: not UTF-8 text.") from None


def first_cells(path: Path) -> list[str]:
    """The cells of the first row; one empty cell if there is none, or if the file cannot be read, which its reader reports."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            first = text.readline(_LONGEST)
            return next(csv.reader([first], delimiter=delimiter_of(first)), [""]) or [""]
    except (OSError, ValueError, csv.Error):
        return [""]


def delimiter_of(line: str) -> str:
    """The separator that occurs most often in a file's first line: a comma, semicolon or tab."""
    return max(",;\t", key=line.count)
