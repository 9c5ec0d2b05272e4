"""VisDrone DET: the folders annotations and images, with one text file for each image.

A row is, as in the readme of the dataset's toolkit, `left,top,width,height,score,category,
truncation,occlusion`, in which categories are numbers. Objects of score 0 are ignored. Regions
to ignore (category 0) and `others` (11) are regions in which objects of any class are ignored.
"""

from pathlib import Path

from data_prep.reading.row_files import file_with_rows, read_row_files
from data_prep.reading.source import Options, Row, Sample, Source, Unreadable, ignored_region
from data_prep.reading.values import number

_CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)  # categories 1 to 10
_OTHERS = len(_CLASSES) + 1


def recognise(sample: Sample) -> str | None:
    path = file_with_rows(sample, read_row)
    return f"{path} has rows of a box, a score, a category, truncation and occlusion" if path else None


def read(source: Path, options: Options) -> Source:
    found = read_row_files(source, options, "xywh", read_row)
    found.classes = list(_CLASSES)
    return found


def read_row(line: str) -> Row | Unreadable:
    values = [number(cell.strip()) for cell in line.removesuffix(",").split(",")]  # some rows end in a comma
    whole = [value for value in values if isinstance(value, int)]
    if len(values) != 8 or len(whole) != 8:
        return Unreadable("needs eight whole numbers")
    *box_xywh, score, category, truncation, occlusion = whole
    if (
        score not in (0, 1)
        or category not in range(_OTHERS + 1)
        or truncation not in (0, 1)
        or occlusion not in (0, 1, 2)
    ):
        return Unreadable(
            f"needs a score of 0 or 1, a category up to {_OTHERS}, a truncation up to 1 and an occlusion up to 2"
        )
    if category in (0, _OTHERS):
        return ignored_region(box_xywh)
    return Row(box_xywh, _CLASSES[category - 1], score == 0, {"truncation": truncation, "occlusion": occlusion})
