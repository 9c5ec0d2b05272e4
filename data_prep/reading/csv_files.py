"""CSV files of a source: their rows, and the names in their header."""

import csv
from pathlib import Path

from boxtune.common.errors import UserError


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not blank. Raises UserError if the file is not CSV or not UTF-8."""
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
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save the file as UTF-8.") from None


def delimiter_of(line: str) -> str:
    """The separator that occurs most often in a file's first line: a comma, semicolon or tab."""
    return max(",;\t", key=line.count)
