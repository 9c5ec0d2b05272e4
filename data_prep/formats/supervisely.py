"""Supervisely: a project with meta.json, and in each dataset the folders img and ann, with one
JSON file for each image (photo.jpg.json).

Rectangles are used as they are; polygons and bitmaps are replaced by their bounding box.
Points, lines and other figures are left out and listed. The order of the classes is that of
meta.json.
"""

import base64
import io
import zlib
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from data_prep.reading.annotation_files import check_is_folder, folder_of, source_files
from data_prep.reading.image_finder import list_unannotated_images
from data_prep.reading.image_pairs import ImagesByStem
from data_prep.reading.shapes import are_numbers, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_json
from data_prep.reading.values import stated_size

_WITH_BOX = {"rectangle", "polygon", "bitmap", "any"}  # shapes of classes whose objects may have a box
_LARGEST_BITMAP = 100_000_000  # bytes, unpacked


def recognise(sample: Sample) -> str | None:
    return next((f"{path} has size and objects" for path, value in sample.documents if _is_annotation(value)), None)


def _is_annotation(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("objects"), list) and isinstance(value.get("size"), dict)


def read(source: Path, options: Options) -> Source:
    check_is_folder(source)
    files = [path for path in source_files(source, options) if path.suffix.lower() == ".json"]
    found = Source(Spool(options.scratch), layout="xyxy")
    images = ImagesByStem(source, options)
    used = []
    for path in files:
        try:
            data = read_json(path)
        except UserError as error:
            found.errors.append(str(error))
            continue
        if isinstance(data, dict) and path.name == "meta.json":
            found.classes += [name for name in _class_names(data) if name not in found.classes]
        elif isinstance(data, dict) and _is_annotation(data):
            used.append(path)
            image = images.nearest(path, path.stem)
            size = stated_size(data["size"].get("width"), data["size"].get("height"))
            item = Item(images.name_of(image), str(image), [], size=size)
            _read_objects(path, data["objects"], item, found)
            found.items.append(item)
    if not used and not found.errors:
        raise UserError(f"{source}: no .json file has `size` and `objects`. Supervisely writes one for each image.")
    found.folder = "" if options.images else folder_of(used, source)
    list_unannotated_images(source, options, found)
    return found


def _class_names(meta: dict[str, Any]) -> list[str]:
    classes = meta.get("classes")
    entries = [entry for entry in classes if isinstance(entry, dict)] if isinstance(classes, list) else []
    titles = [entry.get("title") for entry in entries if str(entry.get("shape")) in _WITH_BOX]
    return [title.strip() for title in titles if isinstance(title, str)]


def _read_objects(path: Path, figures: list[Any], item: Item, found: Source) -> None:
    for number, figure in enumerate(figures):
        if not isinstance(figure, dict) or not isinstance(figure.get("classTitle"), str):
            found.errors.append(f"{path}: objects[{number}] needs classTitle, got {figure!r:.100}")
            continue
        box_xyxy = _box_of(figure)
        if box_xyxy is None:
            item.no_box.append({"geometryType": figure.get("geometryType"), "classTitle": figure["classTitle"]})
        else:
            item.rows.append(Row(box_xyxy, figure["classTitle"].strip()))


def _box_of(figure: dict[str, Any]) -> list[Any] | None:
    """The box of a figure; None for figures that have no box."""
    match figure.get("geometryType"):
        case "rectangle" | "polygon":
            points = figure.get("points")
            exterior = points.get("exterior") if isinstance(points, dict) else None
            return box_of_points(exterior) if isinstance(exterior, list) else [points]
        case "bitmap":
            bitmap = figure.get("bitmap")
            return _box_of_bitmap(bitmap) if isinstance(bitmap, dict) else [bitmap]
    return None


def _box_of_bitmap(bitmap: dict[str, Any]) -> list[Any]:
    """The box of the pixels that are set in a PNG, which is compressed once more, whose top left corner is at `origin`."""
    from PIL import Image  # imported here because -h does not need it

    origin = bitmap.get("origin")
    if not isinstance(origin, list) or not are_numbers(origin, 2):
        return ["bitmap", origin]
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(str(bitmap.get("data"))), _LARGEST_BITMAP)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            mask = image.convert("RGBA").getchannel("A") if has_alpha else image.convert("L")
    except (OSError, ValueError, SyntaxError, zlib.error, Image.DecompressionBombError) as error:
        return ["bitmap", f"corrupt: {error}"]
    box = mask.getbbox()
    return [edge + origin[i % 2] for i, edge in enumerate(box)] if box else ["bitmap", "no pixel is set"]
