"""COCO: one JSON file, or one for each split (annotations/instances_val2017.json, or
train/_annotations.coco.json).

If an object has no `bbox`, its box is the bounding box of its polygons. `area` is kept, because
it decides AP by size. If an image has no `file_name`, its name is taken from the end of its
`coco_url`, as in LVIS.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.shapes import are_numbers, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_json
from data_prep.reading.values import is_set, stated_size

_LISTS = ("images", "annotations", "categories")


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in _LISTS):
            return f"{path} has the lists {', '.join(_LISTS)}"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(
        source, ["instances_*.json", "_annotations.coco.json", "*.json"], options
    )
    found = Source(Spool(options.scratch), layout="xywh", warnings=warnings, folder=folder)
    for file in files:
        _read_file(file, options, found)
    return found


def _read_file(file: AnnotationFile, options: Options, found: Source) -> None:
    data = read_json(file.path)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in _LISTS):
        found.errors.append(f"{file}: COCO needs an object with the lists images, annotations and categories")
        return
    names = _read_categories(file, data["categories"], found)
    _add_classes(file, data, names, found)
    images = _read_images(file, data["images"], found)
    annotations = _read_annotations(file, data, names, found)
    finder = image_finder_for(file, options)
    for image_id, image in images.items():
        named = _file_name(image)
        image_path = finder.find(named)
        found.items.append(
            Item(
                name=image_name(named, image_path, file),
                image_path=str(image_path),
                rows=[_read_object(annotation, names) for annotation in annotations.get(image_id, [])],
                split=file.split,
                size=stated_size(image.get("width"), image.get("height")),
            )
        )


def _is_id(value: object) -> bool:
    return isinstance(value, int | str)


# ---- the three lists -------------------------------------------------------------------------------------------------


def _read_categories(file: AnnotationFile, categories: list[Any], found: Source) -> dict[Hashable, str]:
    """{category id: name}. Ids may have gaps."""
    names: dict[Hashable, str] = {}
    for number, category in enumerate(categories):
        where = f"{file}: categories[{number}]"
        is_object = isinstance(category, dict)
        if not is_object or not _is_id(category.get("id")) or not isinstance(category.get("name"), str):
            found.errors.append(f"{where} needs id and name, got {category!r:.100}")
        elif category["id"] in names:
            found.errors.append(f"{where}: duplicate id {category['id']!r}")
        else:
            names[category["id"]] = category["name"].strip()
    return names


def _add_classes(file: AnnotationFile, data: dict[str, Any], names: dict[Hashable, str], found: Source) -> None:
    """Adds the class names, without a category that only groups the others: Roboflow writes one, without objects, as the
    parent of all classes."""
    categories = [category for category in data["categories"] if isinstance(category, dict)]
    parents = [category.get("supercategory") for category in categories]
    roots = [category.get("id") for category in categories if category.get("supercategory") == "none"]
    used = [annotation.get("category_id") for annotation in data["annotations"] if isinstance(annotation, dict)]
    used_ids = {number for number in used if _is_id(number)}
    grouping = [
        number
        for number, name in names.items()
        if len(names) > 1 and name in parents and number in roots and number not in used_ids
    ]
    classes = dict.fromkeys(name for number, name in names.items() if number not in grouping)
    found.classes += [name for name in classes if name not in found.classes]
    for name in [names[number] for number in grouping if names[number] not in classes]:
        found.warnings.append(f"{file}: class {name!r} only groups the others and is left out")


def _read_images(file: AnnotationFile, images: list[Any], found: Source) -> dict[Hashable, dict[str, Any]]:
    """{image id: entry of the list `images`}."""
    by_id: dict[Hashable, dict[str, Any]] = {}
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not _file_name(image) or not _is_id(image.get("id")):
            found.errors.append(f"{file}: images[{number}] needs id and file_name, got {image!r:.100}")
        elif image["id"] in by_id:
            found.errors.append(f"{file}: images[{number}]: duplicate id {image['id']!r}")
        else:
            by_id[image["id"]] = image
    return by_id


def _file_name(image: dict[str, Any]) -> str:
    """`file_name`, or the last two parts of `coco_url` (train2017/000000001.jpg); "" if there is neither."""
    if isinstance(image.get("file_name"), str):
        return str(image["file_name"])
    address = image.get("coco_url")
    return "/".join(address.split("/")[-2:]) if isinstance(address, str) else ""


def _read_annotations(
    file: AnnotationFile, data: dict[str, Any], names: dict[Hashable, str], found: Source
) -> dict[Hashable, list[dict[str, Any]]]:
    """{image id: its entries of the list `annotations`}."""
    stated = {image["id"] for image in data["images"] if isinstance(image, dict) and _is_id(image.get("id"))}
    by_image: dict[Hashable, list[dict[str, Any]]] = {}
    for number, entry in enumerate(data["annotations"]):
        where = f"{file}: annotations[{number}]"
        if not isinstance(entry, dict) or not _is_id(entry.get("image_id")) or not _is_id(entry.get("category_id")):
            found.errors.append(f"{where} needs image_id and category_id, got {entry!r:.100}")
        elif entry["image_id"] not in stated:
            found.errors.append(f"{where}: image_id {entry['image_id']!r} is not in the list images")
        elif entry["category_id"] not in names:
            found.errors.append(f"{where}: category_id {entry['category_id']!r} is not in the list categories")
        else:
            by_image.setdefault(entry["image_id"], []).append(entry)
    return by_image


# ---- objects ---------------------------------------------------------------------------------------------------------


def _read_object(annotation: dict[str, Any], names: dict[Hashable, str]) -> Row:
    box_xywh = annotation.get("bbox")
    if not box_xywh and isinstance(annotation.get("segmentation"), list):
        box_xywh = _box_of_polygons(annotation["segmentation"])
    box_xywh = box_xywh if isinstance(box_xywh, list) else [box_xywh]
    extra: dict[str, Any] = {key: annotation[key] for key in ("area", "caption") if key in annotation}
    return Row(box_xywh, names[annotation["category_id"]], is_set(annotation.get("iscrowd")), extra)


def _box_of_polygons(polygons: list[Any]) -> list[Any]:
    """[x, y, width, height] around polygons [x, y, x, y, …]; the polygons themselves if they are malformed."""
    rings = [ring for ring in polygons if isinstance(ring, list)]
    box = box_of_points([ring[i : i + 2] for ring in rings for i in range(0, len(ring), 2)])
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]] if are_numbers(box, 4) else polygons
