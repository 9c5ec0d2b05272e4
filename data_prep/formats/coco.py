"""COCO: one JSON file, or one for each split (annotations/instances_val2017.json, or
train/_annotations.coco.json).

An object without `bbox` counts by the box around its polygons. A picture without `file_name` is
the one at the end of its `coco_url`, as in LVIS.
"""

from pathlib import Path

from data_prep.reading.files import (
    annotation_files,
    image_finder_for,
    image_name,
    is_set,
    read_json,
    stated_size,
)
from data_prep.reading.shapes import are_numbers, box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool

_LISTS = ("images", "annotations", "categories")


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        if isinstance(value, dict) and all(isinstance(value.get(key), list) for key in _LISTS):
            return f"{path} has the lists {', '.join(_LISTS)}"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["instances_*.json", "_annotations.coco.json", "*.json"], options)
    found = Source(Spool(options.scratch), layout="xywh", warnings=warnings)
    for file, split in files:
        _read_file(file, split, source, options, found)
    return found


def _read_file(file: Path, split: str | None, source: Path, options: Options, found: Source) -> None:
    data = read_json(file)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in _LISTS):
        found.errors.append(f"{file}: COCO needs an object with the lists images, annotations and categories")
        return
    names = _read_categories(file, data, found)
    pictures = image_finder_for(file, source, options)
    images: dict[object, dict] = {}
    stated = {image["id"] for image in data["images"] if isinstance(image, dict) and _is_id(image.get("id"))}
    for number, image in enumerate(data["images"]):
        if not isinstance(image, dict) or not _file_name(image) or not _is_id(image.get("id")):
            found.errors.append(f"{file}: images[{number}] needs id and file_name, got {image!r:.100}")
        elif image["id"] in images:
            found.errors.append(f"{file}: images[{number}]: id {image['id']!r} stands twice")
        else:
            images[image["id"]] = image
    entries: dict[object, list[dict]] = {image_id: [] for image_id in images}
    for number, entry in enumerate(data["annotations"]):
        where = f"{file}: annotations[{number}]"
        if not isinstance(entry, dict) or not _is_id(entry.get("image_id")) or not _is_id(entry.get("category_id")):
            found.errors.append(f"{where} needs image_id and category_id, got {entry!r:.100}")
        elif entry["image_id"] not in stated:
            found.errors.append(f"{where}: image_id {entry['image_id']!r} is in no entry of images")
        elif entry["category_id"] not in names:
            found.errors.append(f"{where}: category_id {entry['category_id']!r} is in no entry of categories")
        elif entry["image_id"] in images:  # else its image was refused, which has been said
            entries[entry["image_id"]].append(entry)
    for image_id, image in images.items():
        picture = pictures.find(_file_name(image))
        name = image_name(_file_name(image), picture, file, source)
        rows = [_read_object(entry, names) for entry in entries[image_id]]
        size = stated_size(image.get("width"), image.get("height"))
        found.items.append(Item(name, str(picture), rows, split, size))


def _file_name(image: dict) -> str | None:
    """What names the picture: `file_name`, or the last two parts of `coco_url`, as train2017/000000001.jpg; None for neither."""
    if isinstance(image.get("file_name"), str):
        return image["file_name"]
    address = image.get("coco_url")
    return "/".join(address.split("/")[-2:]) if isinstance(address, str) else None


def _read_object(entry: dict, names: dict[object, str]) -> Row:
    box_xywh = entry.get("bbox")
    if not box_xywh and isinstance(entry.get("segmentation"), list):
        box_xywh = _box_of_polygons(entry["segmentation"])
    box_xywh = box_xywh if isinstance(box_xywh, list) else [box_xywh]
    return Row(box_xywh, names[entry["category_id"]], is_set(entry.get("iscrowd")))


def _box_of_polygons(polygons: list) -> list:
    """[x, y, width, height] around polygons [x, y, x, y, …]; what they are where they are none."""
    box = box_of_points(
        [ring[i : i + 2] for ring in polygons if isinstance(ring, list) for i in range(0, len(ring), 2)]
    )
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]] if are_numbers(box, 4) else polygons


def _is_id(value) -> bool:
    return isinstance(value, int | str)


def _read_categories(file: Path, data: dict, found: Source) -> dict[object, str]:
    """{category id: name}. Ids may have gaps."""
    names: dict[object, str] = {}
    for number, category in enumerate(data["categories"]):
        if (
            not isinstance(category, dict)
            or not _is_id(category.get("id"))
            or not isinstance(category.get("name"), str)
        ):
            found.errors.append(f"{file}: categories[{number}] needs id and name, got {category!r:.100}")
        elif category["id"] in names:
            found.errors.append(f"{file}: categories[{number}]: id {category['id']!r} stands twice")
        else:
            names[category["id"]] = category["name"].strip()
    categories = [category for category in data["categories"] if isinstance(category, dict)]
    used = [entry.get("category_id") for entry in data["annotations"] if isinstance(entry, dict)]
    used = {number for number in used if _is_id(number)}
    parents = [category.get("supercategory") for category in categories]
    grouping = [
        number
        for number, name in names.items()
        if name in parents and number not in used and len(names) > 1 and _is_root(categories, number)
    ]
    kept = dict.fromkeys(name for number, name in names.items() if number not in grouping)
    found.classes += [name for name in kept if name not in found.classes]
    for name in [names[number] for number in grouping if names[number] not in kept]:
        found.warnings.append(f"{file}: class {name!r} only groups the others and is left out")
    return names


def _is_root(categories: list[dict], number) -> bool:
    """Whether a category has no parent; Roboflow writes one such entry, without objects, above all classes."""
    return any(category.get("id") == number and category.get("supercategory") == "none" for category in categories)
