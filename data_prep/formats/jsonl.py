"""JSON lines beside pictures, as `imagefolder` of `datasets` has them: metadata.jsonl, with
`file_name` and `objects`.

Which fields hold the boxes and the classes, and how the boxes are written, is told from the
file and said; --image-field, --bbox-field, --label-field and --bbox-format say it instead.
"""

import json
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.reading.files import annotation_files, image_finder_for, image_name, read_text, stated_size
from data_prep.reading.source import Item, Options, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.table_fields import choose_fields, read_objects

_PICTURES = ("file_name", "filename", "image", "image_path", "path", "file")


def recognise(sample: Sample) -> str | None:
    return next((f"{path} is of JSON lines" for path in sample.of_kind(".jsonl")), None)


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["metadata.jsonl", "*.jsonl"], options)
    found = Source(Spool(options.scratch), layout=options.bbox_format, fractions=None, warnings=warnings)
    tables = [(file, split, _read_lines(file, found)) for file, split in files]
    rows = [row for _, _, lines in tables for _, row in lines]
    if found.errors:
        return found
    if not rows:
        raise UserError(f"{source} is empty. It needs a line for each picture.")
    fields = choose_fields(rows, source, options)
    image_field = options.image_field or next((name for name in _PICTURES if isinstance(rows[0].get(name), str)), None)
    if image_field is None:
        raise UserError(f"{source}: no field names the picture; there are {', '.join(rows[0])}. See --image-field.")
    for file, split, lines in tables:
        pictures = image_finder_for(file, source, options)
        for number, row in lines:
            named, objects = row.get(image_field), read_objects(row, fields, None, found.warnings)
            if not isinstance(named, str) or not named:
                found.errors.append(f"{file}:{number}: {image_field} must name a picture, got {named!r:.100}")
            elif isinstance(objects, str):
                found.errors.append(f"{file}:{number}: {objects}")
            else:
                picture = pictures.find(named)
                used = {image_field, "width", "height", fields.parent, fields.bbox, fields.label}
                extra = {key: value for key, value in row.items() if key not in used}
                size = stated_size(row.get("width"), row.get("height"))
                name = image_name(named, picture, file, source)
                found.items.append(Item(name, str(picture), objects, split, size, extra))
    return found


def _read_lines(file: Path, found: Source) -> list[tuple[int, dict]]:
    """(line number, object) of every line that is not blank; what is no object is an error of the source."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), 1):  # and not at U+2028, which a string may hold
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            found.errors.append(f"{file}:{number}: not JSON: {error}")
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            found.errors.append(f"{file}:{number}: needs an object, got {line:.100}")
    return rows
