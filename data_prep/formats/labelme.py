"""labelme: one JSON file for each picture, beside it or in a folder of its own.

Rectangles count as they are, polygons, circles, masks and turned rectangles by the box around
them, shapes of one label and group_id by the box around them all; points and lines are left out
and listed. The picture is the one that imagePath names, else the one that bears the file's own
name, else the one that the file holds as imageData.
"""

import base64
import binascii
import math
import os
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import files_below
from data_prep.reading.files import (
    ImageFinder,
    existing,
    image_finder_for,
    is_output,
    is_set,
    read_json,
    relative_name,
    stated_size,
    suffix_of,
)
from data_prep.reading.shapes import are_numbers, box_of_ellipse, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool

# A mask's points are the corners of its box; `rotation` is X-AnyLabeling's turned rectangle.
_POINT_SHAPES = {"rectangle", "polygon", "mask", "oriented_rectangle", "rotation"}


def recognise(sample: Sample) -> str | None:
    found = (path for path, value in sample.documents if isinstance(value, dict) and "shapes" in value)
    return next((f"{path} has shapes" for path in found), None)


def read(source: Path, options: Options) -> Source:
    files, folder = _find_files(existing(source), options)
    found = Source(Spool(options.scratch), layout="xyxy")
    pictures: dict[Path, ImageFinder] = {}
    others = []
    for file in files:
        try:
            data = read_json(file)
        except UserError as error:
            found.errors.append(str(error))
            continue
        if not isinstance(data, dict) or "shapes" not in data:
            others.append(file)  # such as the tool's own settings, or a COCO file made from these
            continue
        if fault := _fault(data):
            found.errors.append(f"{file}: {fault}")
            continue
        if file.parent not in pictures:
            pictures[file.parent] = image_finder_for(file, source, options)
        found.items.append(_read_item(file, folder, data, pictures[file.parent], options))
    if len(others) == len(files) and not found.errors:
        raise UserError(f"{source}: no .json file has `shapes`. labelme has one file for each picture.")
    if others:
        found.warnings.append(f"{len(others)} .json file(s) have no `shapes` and are left out, such as {others[0]}")
    return found


def _find_files(source: Path, options: Options) -> tuple[list[Path], Path]:
    """(annotation files, the folder that they lie in or below)."""
    if source.is_file():
        return [source], source.parent
    files = [
        path
        for path in files_below(source)
        if path.suffix.lower() == ".json" and not path.name.startswith(".") and not is_output(path, options)
    ]
    if not files:
        raise UserError(f"{source} holds no .json file. labelme has one for each picture.")
    return files, source


def _fault(data: dict) -> str | None:
    """What keeps a file from being read, or None."""
    if not isinstance(data["shapes"], list):
        return f"shapes must be a list, got {data['shapes']!r:.100}"
    for number, shape in enumerate(data["shapes"]):
        if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
            return f"shapes[{number}] needs points, got {shape!r:.100}"
        if not isinstance(shape.get("shape_type"), str | None):
            return f"shapes[{number}]: shape_type must be text, got {shape['shape_type']!r:.100}"
        if not isinstance(shape.get("label", ""), str | int | float | None):
            return f"shapes[{number}]: label must be text, got {shape['label']!r:.100}"
    for key in ("imagePath", "imageData"):
        if not isinstance(data.get(key), str | None):
            return f"{key} must be text, got {data[key]!r:.100}"
    return None


def _read_item(file: Path, folder: Path, data: dict, pictures: ImageFinder, options: Options) -> Item:
    picture = _find_image(file, folder, data, pictures, options)
    name = relative_name(file.with_name(file.stem + picture.suffix), folder)
    size = stated_size(data.get("imageWidth"), data.get("imageHeight"))
    item = Item(name, str(picture), [], size=size)
    groups: dict[tuple[str, str], Row] = {}
    for shape in data["shapes"]:
        box_xyxy, label = _box_of(shape), str(shape.get("label") or "").strip()
        if box_xyxy is None:
            item.no_box.append({"shape_type": shape.get("shape_type"), "label": shape.get("label")})
            continue
        # X-AnyLabeling marks difficult objects so; labelme itself among the flags, if the user made one.
        flags = shape.get("flags") if isinstance(shape.get("flags"), dict) else {}
        row = Row(box_xyxy, label, ignore=is_set(shape.get("difficult")) or is_set(flags.get("difficult")))
        group = (label, str(shape["group_id"])) if shape.get("group_id") is not None else None
        if group in groups and are_numbers(box_xyxy, 4) and are_numbers(groups[group].box, 4):
            whole = groups[group]  # parts of one object, as labelme's own converters have it
            whole.box = box_of_points([whole.box[:2], whole.box[2:], box_xyxy[:2], box_xyxy[2:]])
            whole.ignore |= row.ignore
            continue
        item.rows.append(row)
        if group:
            groups[group] = row
    return item


def _find_image(file: Path, folder: Path, data: dict, pictures: ImageFinder, options: Options) -> Path:
    for name in (data.get("imagePath"), file.stem):
        if name and os.path.isfile(picture := pictures.find(name)):
            return picture
    if data.get("imageData"):
        return _write_embedded(relative_name(file.with_suffix(""), folder), data["imageData"], options)
    return pictures.find(data.get("imagePath") or file.stem)


def _write_embedded(name: str, text: str, options: Options) -> Path:
    """The picture that the file holds, as a file. What does not decode is written as it is and reported as torn."""
    try:
        content = base64.b64decode(text.rpartition("base64,")[2], validate=False)
    except (binascii.Error, ValueError):
        content = text.encode("utf-8", "replace")
    path = options.scratch / "embedded" / f"{name}{suffix_of(content)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _box_of(shape: dict) -> list | None:
    """The box of a shape; None for those that enclose nothing."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind in _POINT_SHAPES:
        return box_of_points(points)
    if kind == "circle":  # its middle, and a point on it
        both = len(points) == 2 and all(isinstance(point, list) and are_numbers(point, 2) for point in points)
        if not both:
            return points
        (cx, cy), (x, y) = points
        radius = math.hypot(x - cx, y - cy)
        return box_of_ellipse(cx, cy, radius, radius)
    return None
