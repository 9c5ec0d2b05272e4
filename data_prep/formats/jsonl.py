"""JSON lines next to images, as the `imagefolder` loader of `datasets` reads them: metadata.jsonl,
with `file_name` and `objects`.

The fields of boxes and classes, and how the boxes are written, are inferred from the file and
printed; --image-field, --bbox-field, --label-field and --bbox-format override this.
"""

from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.problems import join_names
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.source import Item, Options, Sample, Source, Unreadable
from data_prep.reading.spool import Spool
from data_prep.reading.table_fields import Fields, choose_fields, read_objects
from data_prep.reading.text_files import parse_json, read_text
from data_prep.reading.values import stated_size

_IMAGE_FIELDS = ("file_name", "filename", "image", "image_path", "path", "file")

Lines = list[tuple[int, dict[str, Any]]]  # line numbers and values


def recognise(sample: Sample) -> str | None:
    return next((f"{path} holds JSON lines" for path in sample.of_kind(".jsonl")), None)


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["metadata.jsonl", "*.jsonl"], options)
    found = Source(Spool(options.scratch), layout=options.bbox_format, fractions=None, warnings=warnings, folder=folder)
    tables = [(file, _read_lines(file, found)) for file in files]
    rows = [row for _, lines in tables for _, row in lines]
    if found.errors:
        return found
    if not rows:
        raise UserError(f"{source} is empty. It needs a line for each image.")
    fields = choose_fields(rows, source, options)
    image_field = options.image_field or next(
        (name for name in _IMAGE_FIELDS if isinstance(rows[0].get(name), str)), None
    )
    if image_field is None:
        raise UserError(f"{source}: no field names the image; there are {join_names(rows[0])}. See --image-field.")
    for file, lines in tables:
        images = image_finder_for(file, options)
        for number, row in lines:
            named, objects = row.get(image_field), read_objects(row, fields, None, found.warnings)
            if not isinstance(named, str) or not named:
                found.errors.append(f"{file}:{number}: {image_field} must name an image, got {named!r:.100}")
                continue
            if isinstance(objects, Unreadable):
                found.errors.append(f"{file}:{number}: {objects.reason}")
                continue
            image_path = images.find(named)
            name, extra = image_name(named, image_path, file), _extra_fields(row, image_field, fields)
            size = stated_size(row.get("width"), row.get("height"))
            found.items.append(Item(name, str(image_path), objects, file.split, size, extra))
    return found


def _read_lines(file: AnnotationFile, found: Source) -> Lines:
    """The lines that are not blank. Lines that are not JSON objects are errors of the source."""
    rows = []
    for number, line in enumerate(read_text(file.path).split("\n"), 1):  # not splitlines: a string may contain U+2028
        if not line.strip():
            continue
        row = parse_json(line)
        if isinstance(row, Unreadable):
            found.errors.append(f"{file}:{number}: {row.reason}")
        elif isinstance(row, dict):
            rows.append((number, row))
        else:
            found.errors.append(f"{file}:{number}: needs an object, got {line:.100}")
    return rows


def _extra_fields(row: dict[str, Any], image_field: str, fields: Fields) -> dict[str, Any]:
    used = {image_field, "width", "height", fields.parent, fields.bbox, fields.label}
    return {key: value for key, value in row.items() if key not in used}
