"""CVAT for images 1.1: annotations.xml of an export, with or without the folder `images`.

Boxes are used as they are; rotated boxes, polygons, ellipses and masks are replaced by their
bounding box. Points, lines, cuboids and skeletons are left out and listed. An object's
attributes are kept. An image's subset is its split. If images of several subsets have the same
name and their subset is not a split, the subset becomes part of their ids.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import ImageFinder, image_finder_for, image_name
from data_prep.reading.shapes import are_numbers, box_of_corner, box_of_ellipse, box_of_points, box_of_rotated
from data_prep.reading.source import Item, Options, Row, Sample, Source, Unreadable
from data_prep.reading.split_names import split_of
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_xml
from data_prep.reading.values import is_set, number, stated_size

_WITHOUT_BOX = {"points", "polyline", "skeleton", "tag"}  # types of labels whose objects have no box


def recognise(sample: Sample) -> str | None:
    return next((f"{path} begins with <annotations>" for path, tag in sample.xml_roots if tag == "annotations"), None)


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["annotations.xml", "*.xml"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings, folder=folder)
    for file in files:
        tree = read_xml(file.path, "annotations")
        if isinstance(tree, Unreadable):
            found.errors.append(tree.reason)
        elif tree.find("track") is not None:
            found.errors.append(f"{file} is an export of CVAT for video. Export the task as CVAT for images.")
        else:
            _read_file(tree, file, options, found)
    return found


def _read_file(tree: ElementTree.Element, file: AnnotationFile, options: Options, found: Source) -> None:
    found.classes += [name for name in _class_names(tree) if name not in found.classes]
    images = image_finder_for(file, options)
    nodes = tree.findall("image")
    same_name = Counter((node.get("name"), _split_of(node, file)) for node in nodes)
    owners: dict[Path, str] = {}  # the task and subset that each image file belongs to
    for node in nodes:
        name, subset, split = node.get("name"), node.get("subset"), _split_of(node, file)
        if not name:
            found.errors.append(f"{file}: image {node.get('id')!r} has no name")
            continue
        image_path = _find_image(name, subset, images)
        owner = " of ".join(f"{key} {node.get(key)}" for key in ("task_id", "subset") if node.get(key)) or "no task"
        if image_path.is_file() and owners.setdefault(image_path, owner) != owner:
            found.errors.append(
                f"{file}: {name} of {owners[image_path]} and of {owner}: there is only one such image, {image_path}, and it "
                "is unclear which annotations belong to it. Export each task separately, or export the project with images"
            )
            continue
        full_name = f"{subset}/{name}" if subset and same_name[name, split] > 1 else name
        item = Item(image_name(full_name, image_path, file), str(image_path), [], split)
        item.size = stated_size(node.get("width"), node.get("height"))
        _read_shapes(node, item)
        found.items.append(item)


def _class_names(tree: ElementTree.Element) -> list[str]:
    """The labels whose objects have boxes."""
    labels = [
        label
        for label in tree.findall("meta//labels/label")
        if label.find("parent") is None and label.findtext("type") not in _WITHOUT_BOX
    ]
    return list(dict.fromkeys((label.findtext("name") or "").strip() for label in labels))


def _split_of(image: ElementTree.Element, file: AnnotationFile) -> str | None:
    """The image's own split; else that of its annotation file."""
    return split_of(image.get("subset") or "") or file.split


def _find_image(name: str, subset: str | None, images: ImageFinder) -> Path:
    """CVAT puts the images of a subset into a folder with the subset's name."""
    image_path = images.find(f"{subset}/{name}") if subset else images.find(name)
    return image_path if image_path.is_file() else images.find(name)


def _read_shapes(image: ElementTree.Element, item: Item) -> None:
    for node in image:
        if node.tag == "tag":  # describes the whole image
            continue
        label, box_xyxy = (node.get("label") or "").strip(), _box_of(node)
        if box_xyxy is None:
            item.no_box.append({"shape": node.tag, "label": label})
            continue
        attributes = {entry.get("name"): (entry.text or "").strip() for entry in node.findall("attribute")}
        extra: dict[str, Any] = {name: value for name, value in attributes.items() if name}
        item.rows.append(Row(box_xyxy, label, is_set(extra.pop("difficult", False)), extra))


def _box_of(node: ElementTree.Element) -> list[Any] | None:
    """The box of a shape; None for shapes that have no box."""
    match node.tag:
        case "box":
            box_xyxy = _numbers(node, "xtl", "ytl", "xbr", "ybr")
            if not are_numbers(box_xyxy, 4):
                return box_xyxy
            center = [(box_xyxy[0] + box_xyxy[2]) / 2, (box_xyxy[1] + box_xyxy[3]) / 2]
            return box_of_rotated(box_xyxy, number(node.get("rotation", "0")), center)
        case "polygon":
            points = [point.split(",") for point in node.get("points", "").split(";")]
            return box_of_points([[number(value) for value in point] for point in points])
        case "ellipse":
            cx, cy, rx, ry = _numbers(node, "cx", "cy", "rx", "ry")
            return box_of_ellipse(cx, cy, rx, ry, number(node.get("rotation", "0")))
        case "mask":
            return box_of_corner(*_numbers(node, "left", "top", "width", "height"))
    return None


def _numbers(node: ElementTree.Element, *keys: str) -> list[Any]:
    return [number(node.get(key)) for key in keys]
