"""labelme: one JSON file for each image, next to the image or in a separate folder.

Rectangles are used as they are; polygons, circles, masks and rotated rectangles are replaced by
their bounding box. Shapes with the same label and group_id become one object. Points and lines
are left out and listed. The image is the one in imagePath, or else the one with the JSON file's
own name, or else the one that the JSON file contains as imageData.
"""

import base64
import binascii
import math
import os
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.files import files_below
from data_prep.reading.annotation_files import AnnotationFile, check_source_exists, folder_of, is_output
from data_prep.reading.embedded_images import image_suffix
from data_prep.reading.image_finder import ImageFinder, image_finder_for, list_unannotated_images
from data_prep.reading.names import relative_name
from data_prep.reading.shapes import are_numbers, box_of_ellipse, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_json
from data_prep.reading.values import is_set, stated_size

# The points of a mask are the corners of its box; `rotation` is X-AnyLabeling's rotated rectangle.
_POINT_SHAPES = {"rectangle", "polygon", "mask", "oriented_rectangle", "rotation"}


def recognise(sample: Sample) -> str | None:
    paths = (path for path, value in sample.documents if isinstance(value, dict) and "shapes" in value)
    return next((f"{path} has shapes" for path in paths), None)


def read(source: Path, options: Options) -> Source:
    check_source_exists(source)
    files = _find_files(source, options)
    found = Source(Spool(options.scratch), layout="xyxy")
    finders: dict[Path, ImageFinder] = {}
    others: list[AnnotationFile] = []
    folders: set[Path] = set()
    for file in files:
        try:
            data = read_json(file.path)
        except UserError as error:
            found.errors.append(str(error))
            continue
        if not isinstance(data, dict) or "shapes" not in data:
            others.append(file)  # such as the tool's own settings, or a COCO file that was made from these
            continue
        if fault := _fault(data):
            found.errors.append(f"{file}: {fault}")
            continue
        folder = file.path.parent
        folders.add(folder)
        if folder not in finders:
            finders[folder] = image_finder_for(file, options)
        found.items.append(_read_item(file, data, finders[folder], options))
    if len(others) == len(files) and not found.errors:
        raise UserError(f"{source}: no .json file has `shapes`. labelme writes one file for each image.")
    found.folder = folder_of((folder / "any" for folder in folders), source)
    if others:
        found.warnings.append(f"{len(others)} .json file(s) have no `shapes` and are left out, such as {others[0]}")
    if source.is_dir():
        list_unannotated_images(source, options, found)
    return found


def _find_files(source: Path, options: Options) -> list[AnnotationFile]:
    if source.is_file():
        return [AnnotationFile(source, source)]
    paths = (path for path in files_below(source) if path.suffix.lower() == ".json" and not path.name.startswith("."))
    files = [AnnotationFile(path, source) for path in paths if not is_output(path, options)]
    if not files:
        raise UserError(f"{source} contains no .json file. labelme writes one for each image.")
    return files


def _fault(data: dict[str, Any]) -> str | None:
    """Why a file cannot be read, or None."""
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


def _read_item(file: AnnotationFile, data: dict[str, Any], images: ImageFinder, options: Options) -> Item:
    image_path = _find_image(file, data, images, options)
    name = _name_of(file.path.with_name(file.path.stem + image_path.suffix), file)
    item = Item(name, str(image_path), [], size=stated_size(data.get("imageWidth"), data.get("imageHeight")))
    groups: dict[tuple[str, str], Row] = {}
    for shape in data["shapes"]:
        row = _read_shape(shape)
        if row is None:
            item.no_box.append({"shape_type": shape.get("shape_type"), "label": shape.get("label")})
            continue
        group = (row.category, str(shape["group_id"])) if shape.get("group_id") is not None else None
        whole = groups.get(group) if group else None
        if whole and are_numbers(row.box, 4) and are_numbers(whole.box, 4):
            _merge(row, into=whole)
            continue
        item.rows.append(row)
        if group:
            groups[group] = row
    return item


def _name_of(path: Path, file: AnnotationFile) -> str:
    """The name of a path relative to SOURCE."""
    return relative_name(path, file.source if file.source.is_dir() else file.source.parent)


# ---- images ----------------------------------------------------------------------------------------------------------


def _find_image(file: AnnotationFile, data: dict[str, Any], images: ImageFinder, options: Options) -> Path:
    # Some files name themselves, such as the one in the tool's tutorial.
    named = "" if str(data.get("imagePath")).lower().endswith(".json") else data.get("imagePath")
    for name in (named, file.path.stem):
        if name and os.path.isfile(image_path := images.find(name)):
            return image_path
    if data.get("imageData"):
        return _write_embedded(_name_of(file.path.with_suffix(""), file), data["imageData"], options)
    return images.find(named or file.path.stem)


def _write_embedded(name: str, text: str, options: Options) -> Path:
    """Writes the image that a JSON file contains. Text that is not base64 is written as it is; the image check reports it."""
    try:
        content = base64.b64decode(text.rpartition("base64,")[2], validate=False)
    except (binascii.Error, ValueError):
        content = text.encode("utf-8", "replace")
    path = options.scratch / "embedded" / f"{name}{image_suffix(content)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _read_shape(shape: dict[str, Any]) -> Row | None:
    """The object of a shape; None for shapes that have no box."""
    box_xyxy = _box_of(shape)
    if box_xyxy is None:
        return None
    # X-AnyLabeling has a key for difficult objects; in labelme the user can define such a flag.
    flags = shape.get("flags")
    ignore = is_set(shape.get("difficult")) or (isinstance(flags, dict) and is_set(flags.get("difficult")))
    return Row(box_xyxy, str(shape.get("label") or "").strip(), ignore)


def _merge(row: Row, into: Row) -> None:
    """Shapes of a group are parts of one object, as in labelme's own converters."""
    into.box = box_of_points([into.box[:2], into.box[2:], row.box[:2], row.box[2:]])
    into.ignore |= row.ignore


def _box_of(shape: dict[str, Any]) -> list[Any] | None:
    """The box of a shape; None for shapes that have no box."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind in _POINT_SHAPES:
        return box_of_points(points)
    if kind == "circle":  # its center, and a point on its edge
        if len(points) != 2 or not all(isinstance(point, list) and are_numbers(point, 2) for point in points):
            return list(points)
        (cx, cy), (x, y) = points
        radius = math.hypot(x - cx, y - cy)
        return box_of_ellipse(cx, cy, radius, radius)
    return None
