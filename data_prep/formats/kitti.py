"""KITTI: label_2 next to image_2, with one text file for each image; also as CVAT and others
write it.

A row is, as in the readme of the benchmark's development kit, `type truncated occluded alpha
left top right bottom`, the height, width, length, x, y, z and rotation in 3D, and in results a
score. The box is used, and `truncated` and `occluded` are kept. A row of the type DontCare is a
region in which objects of any class are ignored.
"""

from pathlib import Path

from data_prep.reading.row_files import file_with_rows, read_row_files
from data_prep.reading.shapes import are_numbers
from data_prep.reading.source import Options, Row, Sample, Source, Unreadable, ignored_region
from data_prep.reading.values import number

_COUNTS = (14, 15)  # numbers in a row, without and with a score
_DO_NOT_CARE = "dontcare"


def recognise(sample: Sample) -> str | None:
    path = file_with_rows(sample, read_row)
    return f"{path} has rows of a type and {_COUNTS[0]} numbers" if path else None


def read(source: Path, options: Options) -> Source:
    return read_row_files(source, options, "xyxy", read_row)


def read_row(line: str) -> Row | Unreadable:
    values = [number(cell) for cell in line.split()]
    words = [str(value) for value in values if isinstance(value, str)]
    numbers = values[len(words) :]
    # A type may have several words, such as `traffic light`.
    if not words or len(numbers) not in _COUNTS or not are_numbers(numbers, len(numbers)):
        return Unreadable("needs a type, truncated, occluded, alpha, the box and seven numbers in 3D")
    truncated, occluded, _, *box_xyxy = numbers[:7]
    if "".join(words).lower() == _DO_NOT_CARE:
        return ignored_region(box_xyxy)
    return Row(box_xyxy, " ".join(words), extra={"truncated": truncated, "occluded": occluded})
