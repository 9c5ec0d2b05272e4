"""VIA (VGG Image Annotator 1 and 2): a project or annotations as JSON, or its CSV; one file, or
one for each split.

Rectangles are used as they are; polygons, circles and ellipses are replaced by their bounding
box. Points and lines are left out and listed. The class of a region is its only attribute, or
the attribute that --label-field names.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.problems import join_names
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.csv_files import read_lines
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.shapes import are_numbers, box_of_corner, box_of_ellipse, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source, Unreadable
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import parse_json, read_json

_CSV_COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        entries = value.get("_via_img_metadata", value) if isinstance(value, dict) else None
        first = next(iter(entries.values()), None) if isinstance(entries, dict) else None
        if isinstance(first, dict) and {"filename", "regions"} <= first.keys():
            return f"{path} has entries with filename and regions"
    paths = (path for path, cells in sample.csv_heads if {*_column_names(cells)} >= _CSV_COLUMNS)
    return next((f"{path} has the column region_shape_attributes" for path in paths), None)


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["via_*.json", "via_*.csv", "*.json", "*.csv"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings, folder=folder)
    entries = [(file, _read_entries(file, found)) for file in files]
    label_field = _choose_attribute([entry for _, part in entries for entry in part], source, options.label_field)
    for file, part in entries:
        images = image_finder_for(file, options)
        for number, entry in enumerate(part):
            if fault := _fault(entry):
                found.errors.append(f"{file}: entry {number} {fault}")
                continue
            image_path = images.find(entry["filename"])
            item = Item(image_name(entry["filename"], image_path, file), str(image_path), [], file.split)
            _read_regions(entry["regions"], label_field, item, found)
            found.items.append(item)
    return found


# ---- files → one entry for each image, with `regions` as a list ------------------------------------------------------


def _read_entries(file: AnnotationFile, found: Source) -> list[Any]:
    if file.path.suffix.lower() == ".csv":
        return _read_csv(file, found)
    data = read_json(file.path)
    if isinstance(data, dict) and isinstance(data.get("_via_img_metadata"), dict):
        data = data["_via_img_metadata"]
    elif isinstance(data, dict) and isinstance(data.get("project"), dict) and "view" in data:
        raise UserError(f"{file} is a VIA 3 project, which is not supported. Export it as COCO and use that format.")
    if not isinstance(data, dict):
        raise UserError(f"{file}: VIA needs an object with an entry for each image, got {type(data).__name__}.")
    return [_with_list(entry) if isinstance(entry, dict) else entry for entry in data.values()]


def _with_list(entry: dict[str, Any]) -> dict[str, Any]:
    """VIA 1 writes regions as {"0": …, "1": …}."""
    regions = entry.get("regions", [])
    return entry | {"regions": list(regions.values()) if isinstance(regions, dict) else regions}


def _read_csv(file: AnnotationFile, found: Source) -> list[dict[str, Any]]:
    """All rows of an image as one entry. A row without a shape stands for an image without objects."""
    (_, header), *lines = read_lines(file.path) or [(0, [])]
    header = _column_names(header)
    if missing := _CSV_COLUMNS - {*header}:
        raise UserError(f"{file} lacks columns of VIA's CSV: {', '.join(sorted(missing))}.")
    entries: dict[str, dict[str, Any]] = {}
    for line_number, cells in lines:
        where = f"{file}:{line_number}"
        if len(cells) != len(header):
            found.errors.append(f"{where}: has {len(cells)} columns, the header has {len(header)}")
            continue
        row = dict(zip(header, cells, strict=True))
        entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
        shape = parse_json(row["region_shape_attributes"] or "{}")
        attributes = parse_json(row["region_attributes"] or "{}")
        if faults := [value.reason for value in (shape, attributes) if isinstance(value, Unreadable)]:
            found.errors.append(f"{where}: {faults[0]}")
        elif shape:
            entry["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    return list(entries.values())


def _column_names(cells: list[str]) -> list[str]:
    """The column names in a header; VIA 1 puts a # before the first."""
    return [cell.strip().removeprefix("#") for cell in cells]


def _fault(entry: Any) -> str | None:
    """Why an entry cannot be read, or None."""
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str) or not entry["filename"]:
        return f"needs `filename`, the name of an image, got {entry!r:.100}"
    if not isinstance(entry["regions"], list):
        return f"({entry['filename']}): regions must be a list, got {entry['regions']!r:.100}"
    for number, region in enumerate(entry["regions"]):
        if not isinstance(region, dict) or not isinstance(region.get("shape_attributes"), dict):
            return f"({entry['filename']}): regions[{number}] needs shape_attributes, got {region!r:.100}"
        if not isinstance(region.get("region_attributes", {}), dict):
            return f"({entry['filename']}): regions[{number}]: region_attributes must be an object"
    return None


# ---- regions ---------------------------------------------------------------------------------------------------------


def _choose_attribute(entries: list[Any], source: Path, wanted: str | None) -> str | None:
    """The attribute that holds the class: `wanted`, or the only one; None if regions have no attributes.

    Raises UserError if there are several and none is wanted, or if the wanted one does not exist.
    """
    regions = [region for entry in entries if not _fault(entry) for region in entry["regions"]]
    counts = Counter(key for region in regions for key in region.get("region_attributes", {}))
    known = join_names(f"{key} ({count} regions)" for key, count in counts.most_common())
    if wanted and wanted not in counts:
        raise UserError(
            f"--label-field {wanted}: no region of {source} has that attribute; there are: {known or 'none'}."
        )
    if len(counts) > 1 and not wanted:
        raise UserError(f"{source}: regions have several attributes: {known}. Choose the class with --label-field.")
    return wanted or next(iter(counts), None)


def _read_regions(regions: list[dict[str, Any]], label_field: str | None, item: Item, found: Source) -> None:
    for region in regions:
        shape = region["shape_attributes"]
        box_xyxy = _box_of(shape)
        if box_xyxy is None:
            item.no_box.append(shape)
            continue
        label = _label_of(region.get("region_attributes", {}).get(label_field))
        if isinstance(label, Unreadable):
            found.errors.append(f"{item.name}: {label_field} of a region {label.reason}")
        else:
            item.rows.append(Row(box_xyxy, label))


def _box_of(shape: dict[str, Any]) -> list[Any] | None:
    """The box of a shape; None for shapes that have no box."""
    match shape.get("name"):
        case "rect":
            return box_of_corner(*(shape.get(key) for key in ("x", "y", "width", "height")))
        case "polygon":
            xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
            if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
                return [xs, ys]
            return box_of_points(list(zip(xs, ys, strict=True)))
        case "circle":
            return box_of_ellipse(shape.get("cx"), shape.get("cy"), shape.get("r"), shape.get("r"))
        case "ellipse":
            theta = shape.get("theta", 0)
            degrees = math.degrees(theta) if are_numbers([theta], 1) else None
            return box_of_ellipse(shape.get("cx"), shape.get("cy"), shape.get("rx"), shape.get("ry"), degrees)
    return None


def _label_of(value: object) -> str | Unreadable:
    """The class in an attribute: a text, a number, or the ticked option of a checkbox, {"cat": true}; "" if there is none."""
    if isinstance(value, dict):
        ticked = [str(name) for name, mark in value.items() if mark]
        if len(ticked) <= 1:
            return "".join(ticked).strip()
    if isinstance(value, dict | list):
        return Unreadable(f"must be one class, got {value!r:.100}")
    return "" if value is None else str(value).strip()
