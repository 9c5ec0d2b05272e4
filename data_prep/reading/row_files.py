"""Text files of one image each, named after it, with a row for each object: KITTI, DOTA, VisDrone."""

from collections.abc import Callable
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.reading.annotation_files import check_is_folder, folder_of, source_files
from data_prep.reading.image_finder import list_unannotated_images
from data_prep.reading.image_pairs import ImagesByStem
from data_prep.reading.source import Item, Options, Row, Sample, Source, Unreadable
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import encoding_fault, read_text

_OPENED = 5  # files of each folder of a sample
_MAX_TRIED, _MAX_LISTED = 20, 5  # files without rows; reasons why a file has no rows
_MAX_HEAD = 5  # lines at the start of a file that may be no rows
_MAX_LINE = 1000  # characters

# The object in a line; None if the line is a header; or why it is neither.
ReadRow = Callable[[str], Row | Unreadable | None]


def file_with_rows(sample: Sample, read_row: ReadRow) -> Path | None:
    """A file of a sample that begins with a row, or None."""
    paths = sample.first_of_folders(".txt", _OPENED)
    return next((path for path in paths if begins_with_row(path, read_row)), None)


def begins_with_row(path: Path, read_row: ReadRow) -> bool:
    """Whether the first line that is not a header is a row."""
    try:
        return isinstance(_first_row(path, read_row), Row)
    except (OSError, ValueError):  # the reader of the chosen format reports it
        return False


def _first_row(path: Path, read_row: ReadRow) -> Row | Unreadable | None:
    with open(path, encoding="utf-8-sig") as text:
        lines = [text.readline(_MAX_LINE).strip() for _ in range(_MAX_HEAD)]
    rows = (read_row(line) for line in lines if line)
    return next((row for row in rows if row is not None), None)


def _reason_for_no_row(path: Path, read_row: ReadRow) -> str | None:
    """Why a file does not begin with a row; None if it is empty."""
    if fault := encoding_fault(path):
        return fault
    row = _first_row(path, read_row)
    return f"{path}: {row.reason}" if isinstance(row, Unreadable) else None


def read_row_files(source: Path, options: Options, layout: str, read_row: ReadRow) -> Source:
    """The images of all files in the folders of rows. A file without rows is that of an empty image."""
    check_is_folder(source)
    images = ImagesByStem(source, options)
    texts = [path for path in source_files(source, options) if path.suffix.lower() == ".txt"]
    with_rows = {path for path in texts if begins_with_row(path, read_row)}
    if not with_rows:
        reasons = [reason for path in texts[:_MAX_TRIED] if (reason := _reason_for_no_row(path, read_row))]
        raise UserError(
            f"{source} and its subfolders contain no .txt file that begins with a row of this format.",
            reasons[:_MAX_LISTED],
        )
    texts = _texts_of_labels(texts, with_rows, read_row)
    of_image = {path: images.nearest(path, path.stem) for path in texts if path in with_rows or path.stem in images}
    _check_one_file_per_image(source, of_image)
    folder = "" if options.images else folder_of([*of_image, *of_image.values()], source)
    found = Source(Spool(options.scratch), layout=layout, folder=folder)
    for path, image in of_image.items():
        found.items.append(Item(images.name_of(image), str(image), _read_rows(path, read_row, found)))
    if others := [path for path in texts if path not in of_image]:
        found.warnings.append(
            f"{len(others)} .txt file(s) have neither rows nor an image and are left out, such as {others[0]}"
        )
    list_unannotated_images(source, options, found)
    return found


def _texts_of_labels(texts: list[Path], with_rows: set[Path], read_row: ReadRow) -> list[Path]:
    """The files in the folders of those that begin with a row. A folder of the same name counts if it holds nothing else, such
    as label_2 of a split without objects, but not calib/train beside label_2/train."""
    folders = {path.parent for path in with_rows}
    names = {folder.name for folder in folders}
    candidates = [path for path in texts if path.parent.name in names]
    others = {path.parent for path in candidates if path.parent not in folders and _reason_for_no_row(path, read_row)}
    return [path for path in candidates if path.parent not in others]


def _check_one_file_per_image(source: Path, of_image: dict[Path, Path]) -> None:
    first_of: dict[Path, Path] = {}
    for path, image in of_image.items():
        first = first_of.setdefault(image, path)
        if first != path:
            raise UserError(
                f"{source} has two files for {image}: {first} and {path}. Pass the folder of one of them as SOURCE, and the "
                "folder of the images with --images."
            )


def _read_rows(path: Path, read_row: ReadRow, found: Source) -> list[Row]:
    rows = []
    try:
        text = read_text(path)
    except UserError as error:
        found.errors.append(str(error))
        return []
    for number, line in enumerate(text.splitlines(), 1):
        row = read_row(line.strip()) if line.strip() else None
        if isinstance(row, Unreadable):
            found.errors.append(f"{path}:{number}: {row.reason}, got {line.strip():.100}")
        elif row:
            rows.append(row)
    return rows
