"""VIA (VGG Image Annotator 1 and 2): a project or annotations as JSON, or its CSV; one file, or
one for each split.

Rectangles count as they are, polygons, circles and ellipses by the box around them; points and
lines are left out and listed. A region's class is its one attribute, or the attribute that
--label-field names.
"""

import math
from collections import Counter
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.formats.csv_table import header_words, read_lines
from data_prep.reading.files import annotation_files, image_finder_for, image_name, parse_json, read_json
from data_prep.reading.shapes import are_numbers, box_of_corner, box_of_ellipse, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool

_CSV_COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        entries = value.get("_via_img_metadata", value) if isinstance(value, dict) else None
        first = next(iter(entries.values()), None) if isinstance(entries, dict) else None
        if isinstance(first, dict) and {"filename", "regions"} <= first.keys():
            return f"{path} has entries with filename and regions"
    heads = (path for path, cells in sample.csv_heads if {*header_words(cells)} >= _CSV_COLUMNS)
    return next((f"{path} has the column region_shape_attributes" for path in heads), None)


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["via_*.json", "via_*.csv", "*.json", "*.csv"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings)
    entries = [(file, split, _read_entries(file, found)) for file, split in files]
    label_field = _choose_attribute([entry for _, _, part in entries for entry in part], source, options.label_field)
    for file, split, part in entries:
        pictures = image_finder_for(file, source, options)
        for number, entry in enumerate(part):
            if fault := _fault(entry):
                found.errors.append(f"{file}: entry {number} {fault}")
            else:
                picture = pictures.find(entry["filename"])
                item = Item(image_name(entry["filename"], picture, file, source), str(picture), [], split)
                item.rows = _read_regions(entry, label_field, item, found)
                found.items.append(item)
    return found


def _read_entries(file: Path, found: Source) -> list:
    """One entry for each picture, with `regions` as a list."""
    if file.suffix.lower() == ".csv":
        return _read_csv(file, found)
    data = read_json(file)
    if isinstance(data, dict) and isinstance(data.get("_via_img_metadata"), dict):
        data = data["_via_img_metadata"]
    elif isinstance(data, dict) and isinstance(data.get("project"), dict) and "view" in data:
        raise UserError(f"{file} is a project of VIA 3, which is not read. Export it as COCO, and use that format.")
    if not isinstance(data, dict):
        raise UserError(f"{file}: VIA needs an object with an entry for each picture, got {type(data).__name__}.")
    return [_with_list(entry) if isinstance(entry, dict) else entry for entry in data.values()]


def _with_list(entry: dict) -> dict:
    """VIA 1 wrote the regions as {"0": …, "1": …}."""
    regions = entry.get("regions", [])
    return entry | {"regions": list(regions.values()) if isinstance(regions, dict) else regions}


def _read_csv(file: Path, found: Source) -> list[dict]:
    """The rows of one picture as one entry; a row without a shape stands for a picture without objects."""
    (_, header), *lines = read_lines(file) or [(0, [])]
    header = header_words(header)
    if missing := _CSV_COLUMNS - {*header}:
        raise UserError(f"{file}: VIA's CSV has the columns {', '.join(sorted(missing))} too.")
    entries: dict[str, dict] = {}
    for line_number, cells in lines:
        where = f"{file}:{line_number}"
        if len(cells) != len(header):
            found.errors.append(f"{where}: {len(cells)} columns, the header has {len(header)}")
            continue
        row = dict(zip(header, cells, strict=True))
        entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
        try:
            region = {
                key: parse_json(row[key] or "{}", where) for key in ("region_shape_attributes", "region_attributes")
            }
        except UserError as error:
            found.errors.append(str(error))
            continue
        if shape := region.pop("region_shape_attributes"):
            entry["regions"].append({"shape_attributes": shape, **region})
    return list(entries.values())


def _fault(entry) -> str | None:
    """What keeps an entry from being read, or None."""
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str) or not entry["filename"]:
        return f"needs `filename`, the name of a picture, got {entry!r:.100}"
    if not isinstance(entry["regions"], list):
        return f"({entry['filename']}): regions must be a list, got {entry['regions']!r:.100}"
    for number, region in enumerate(entry["regions"]):
        if not isinstance(region, dict) or not isinstance(region.get("shape_attributes"), dict):
            return f"({entry['filename']}): regions[{number}] needs shape_attributes, got {region!r:.100}"
        if not isinstance(region.get("region_attributes", {}), dict):
            return f"({entry['filename']}): regions[{number}]: region_attributes must be an object"
    return None


def _choose_attribute(entries: list, source: Path, wanted: str | None) -> str | None:
    """The attribute that names the class: the one that is wanted, or the only one; None where regions have none.

    Raises UserError where there are several, or not the one that is wanted.
    """
    regions = [region for entry in entries if not _fault(entry) for region in entry["regions"]]
    counts = Counter(key for region in regions for key in region.get("region_attributes", {}))
    known = ", ".join(f"{key} ({count} regions)" for key, count in counts.most_common())
    if wanted and wanted not in counts:
        raise UserError(
            f"--label-field {wanted}: no region of {source} has that attribute; there are: {known or 'none'}."
        )
    if len(counts) > 1 and not wanted:
        raise UserError(f"{source}: regions have several attributes: {known}. Name the class's with --label-field.")
    return wanted or next(iter(counts), None)


def _read_regions(entry: dict, label_field: str | None, item: Item, found: Source) -> list[Row]:
    rows = []
    for region in entry["regions"]:
        shape = region["shape_attributes"]
        box_xyxy = _box_of(shape)
        if box_xyxy is None:
            item.no_box.append(shape)
        else:
            label = _label_of(region.get("region_attributes", {}).get(label_field))
            if label is None:
                value = region["region_attributes"][label_field]
                found.errors.append(f"{item.name}: {label_field} of a region must be one class, got {value!r:.100}")
            else:
                rows.append(Row(box_xyxy, label))
    return rows


def _box_of(shape: dict) -> list | None:
    """The box of a shape; None for those that enclose nothing."""
    match shape.get("name"):
        case "rect":
            return box_of_corner(*(shape.get(key) for key in ("x", "y", "width", "height")))
        case "polygon":
            xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
            both = isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys)
            return box_of_points(list(zip(xs, ys, strict=True)) if both else [xs, ys])
        case "circle":
            return box_of_ellipse(shape.get("cx"), shape.get("cy"), shape.get("r"), shape.get("r"))
        case "ellipse":
            theta = shape.get("theta", 0)
            degrees = math.degrees(theta) if are_numbers([theta], 1) else None
            return box_of_ellipse(shape.get("cx"), shape.get("cy"), shape.get("rx"), shape.get("ry"), degrees)
    return None


def _label_of(value) -> str | None:
    """A text, a number, or the one ticked option of a checkbox, {"cat": true}; "" for none, None for several."""
    if isinstance(value, dict):
        ticked = [name for name, mark in value.items() if mark]
        return None if len(ticked) > 1 else "".join(ticked).strip()
    return None if isinstance(value, list) else str(value if value is not None else "").strip()
