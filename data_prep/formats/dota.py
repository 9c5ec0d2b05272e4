"""DOTA and YOLOv5-OBB: one text file for each image, with rotated boxes, which are replaced by
their surrounding box.

A row is, as on the dataset's page, `x1 y1 x2 y2 x3 y3 x4 y4 category difficult` in pixels; the
lines `imagesource:` and `gsd:` at the start of a file are left out. Difficult objects are
ignored. (Rows `class x1 y1 … x4 y4` in fractions, YOLO's own OBB, are read by the format yolo.)
"""

from pathlib import Path

from data_prep.reading.row_files import file_with_rows, read_row_files
from data_prep.reading.shapes import are_numbers, box_of_points
from data_prep.reading.source import Options, Row, Sample, Source, Unreadable
from data_prep.reading.values import number

_HEADERS = ("imagesource:", "gsd:")


def recognise(sample: Sample) -> str | None:
    path = file_with_rows(sample, read_row)
    return f"{path} has rows of four corners, a category and a difficulty" if path else None


def read(source: Path, options: Options) -> Source:
    found = read_row_files(source, options, "xyxy", read_row)
    found.warnings.append("rotated boxes are replaced by the upright boxes around them")
    return found


def read_row(line: str) -> Row | Unreadable | None:
    if line.lower().startswith(_HEADERS):
        return None
    cells = line.split()
    corners, words = [number(cell) for cell in cells[:8]], cells[8:]
    difficult = words.pop() if len(words) > 1 and words[-1].isdecimal() else "0"  # it may be absent
    if not are_numbers(corners, 8) or not words or not isinstance(number(words[0]), str):
        return Unreadable("needs eight numbers, a category and a difficulty")
    box_xyxy = box_of_points([corners[i : i + 2] for i in range(0, 8, 2)])
    return Row(box_xyxy, " ".join(words), ignore=difficult != "0")
