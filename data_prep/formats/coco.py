"""COCO: one JSON file, or one for each split (annotations/instances_val2017.json, or
train/_annotations.coco.json).

If an object has no `bbox`, its box is the bounding box of its polygons. `area` is kept, because
it decides AP by size. If an image has no `file_name`, its name is taken from the end of its
`coco_url`, as in LVIS.
"""

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import image_finder_for, image_name
from data_prep.reading.json_stream import lists_of_object
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
    document = _read_document(file, options)
    if any(key not in document.keys for key in _LISTS):
        found.errors.append(f"{file}: COCO needs an object with the lists images, annotations and categories")
        return
    names = _read_categories(file, document.categories, found)
    _add_classes(file, document, names, found)
    found.errors += document.image_errors
    found.errors += _annotation_errors(file, document, names)
    finder = image_finder_for(file, options)
    for image_id, (named, size) in document.images.items():
        image_path = finder.find(named)
        objects = (document.objects[position] for position in document.of_image.get(image_id, ()))
        found.items.append(
            Item(
                name=image_name(named, image_path, file),
                image_path=str(image_path),
                rows=[one.row(names) for one in objects if one.category_id in names],
                split=file.split,
                size=size,
            )
        )


# ---- the document ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Object:
    """What is kept of an annotation. number: its position in the list `annotations`."""

    number: int
    category_id: Hashable
    box_xywh: list[Any]
    is_crowd: bool
    extra: dict[str, Any]

    def row(self, names: dict[Hashable, str]) -> Row:
        return Row(self.box_xywh, names[self.category_id], self.is_crowd, self.extra)


@dataclass
class _Document:
    """What is kept of a file. Its objects are on disk, so that memory holds less than a kilobyte for each image.

    keys: those of its lists. images: {id: (file name, stated size)}. of_image: {image id: positions in `objects`}. used: the
    category ids of objects. rejected: ids of images with an error. annotation_errors: (number of the annotation, what is wrong).
    """

    objects: Spool[_Object]
    keys: set[str] = field(default_factory=set)
    categories: list[Any] = field(default_factory=list)
    images: dict[Hashable, tuple[str, tuple[int, int] | None]] = field(default_factory=dict)
    of_image: dict[Hashable, "array[int]"] = field(default_factory=dict)
    used: set[Hashable] = field(default_factory=set)
    rejected: set[Hashable] = field(default_factory=set)
    image_errors: list[str] = field(default_factory=list)
    annotation_errors: list[tuple[int, str]] = field(default_factory=list)


def _read_document(file: AnnotationFile, options: Options) -> _Document:
    """Raises UserError if the file is not JSON."""
    document = _Document(Spool(options.scratch))
    try:
        for key, elements in lists_of_object(file.path):
            document.keys.add(key)
            if key == "categories":
                document.categories += elements
            elif key == "images":
                _read_images(file, elements, document)
            elif key == "annotations":
                _read_annotations(file, elements, document)
    except (ValueError, RecursionError):
        # Raises UserError with line, column or encoding. If it is JSON after all, it is something other than an object.
        read_json(file.path)
        document.keys.clear()
    return document


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


def _add_classes(file: AnnotationFile, document: _Document, names: dict[Hashable, str], found: Source) -> None:
    """Adds the class names, without a category that only groups the others: Roboflow writes one, without objects, as the
    parent of all classes."""
    categories = [category for category in document.categories if isinstance(category, dict)]
    parents = [category.get("supercategory") for category in categories]
    roots = [category.get("id") for category in categories if category.get("supercategory") == "none"]
    grouping = [
        number
        for number, name in names.items()
        if len(names) > 1 and name in parents and number in roots and number not in document.used
    ]
    classes = dict.fromkeys(name for number, name in names.items() if number not in grouping)
    found.classes += [name for name in classes if name not in found.classes]
    for name in [names[number] for number in grouping if names[number] not in classes]:
        found.warnings.append(f"{file}: class {name!r} only groups the others and is left out")


def _read_images(file: AnnotationFile, images: Iterator[Any], document: _Document) -> None:
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not _file_name(image) or not _is_id(image.get("id")):
            document.image_errors.append(f"{file}: images[{number}] needs id and file_name, got {image!r:.100}")
            if isinstance(image, dict) and _is_id(image.get("id")):
                document.rejected.add(image["id"])
        elif image["id"] in document.images:
            document.image_errors.append(f"{file}: images[{number}]: duplicate id {image['id']!r}")
        else:
            size = stated_size(image.get("width"), image.get("height"))
            document.images[image["id"]] = (_file_name(image), size)


def _file_name(image: dict[str, Any]) -> str:
    """`file_name`, or the last two parts of `coco_url` (train2017/000000001.jpg); "" if there is neither."""
    if isinstance(image.get("file_name"), str):
        return str(image["file_name"])
    address = image.get("coco_url")
    return "/".join(address.split("/")[-2:]) if isinstance(address, str) else ""


def _read_annotations(file: AnnotationFile, annotations: Iterator[Any], document: _Document) -> None:
    for number, entry in enumerate(annotations):
        if not isinstance(entry, dict) or not _is_id(entry.get("image_id")) or not _is_id(entry.get("category_id")):
            text = f"{file}: annotations[{number}] needs image_id and category_id, got {entry!r:.100}"
            document.annotation_errors.append((number, text))
            continue
        document.used.add(entry["category_id"])
        document.of_image.setdefault(entry["image_id"], array("q")).append(len(document.objects))
        document.objects.append(_read_object(number, entry))


def _annotation_errors(file: AnnotationFile, document: _Document, names: dict[Hashable, str]) -> list[str]:
    """What is wrong with the annotations, in their order. The file may list them before the images and categories."""
    errors = list(document.annotation_errors)
    unplaced = document.of_image.keys() - document.images.keys() - document.rejected
    for image_id in unplaced:
        numbers = (document.objects[position].number for position in document.of_image[image_id])
        errors += [
            (number, f"{file}: annotations[{number}]: image_id {image_id!r} is not in the list images")
            for number in numbers
        ]
    if document.used - names.keys():
        named = {number for number, _ in errors}
        errors += [
            (
                one.number,
                f"{file}: annotations[{one.number}]: category_id {one.category_id!r} is not in the list categories",
            )
            for one in document.objects
            if one.category_id not in names and one.number not in named
        ]
    return [text for _, text in sorted(errors)]


def _read_object(number: int, annotation: dict[str, Any]) -> _Object:
    box_xywh = annotation.get("bbox")
    if not box_xywh and isinstance(annotation.get("segmentation"), list):
        box_xywh = _box_of_polygons(annotation["segmentation"])
    box_xywh = box_xywh if isinstance(box_xywh, list) else [box_xywh]
    extra: dict[str, Any] = {key: annotation[key] for key in ("area", "caption") if key in annotation}
    return _Object(number, annotation["category_id"], box_xywh, is_set(annotation.get("iscrowd")), extra)


def _box_of_polygons(polygons: list[Any]) -> list[Any]:
    """[x, y, width, height] around polygons [x, y, x, y, …]; the polygons themselves if they are malformed."""
    rings = [ring for ring in polygons if isinstance(ring, list)]
    box = box_of_points([ring[i : i + 2] for ring in rings for i in range(0, len(ring), 2)])
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]] if are_numbers(box, 4) else polygons
