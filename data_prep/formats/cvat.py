"""CVAT for images 1.1: annotations.xml of an export, beside the folder `images` or not.

Boxes count as they are, turned boxes, polygons, ellipses and masks by the box around them;
points, lines, cuboids and skeletons are left out and listed. An object's attributes are kept; a
picture's subset is its split. In a project's export, pictures of several subsets may bear one
name: the subset is then part of it where it is no split.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from data_prep.reading.files import (
    ImageFinder,
    annotation_files,
    image_finder_for,
    image_name,
    is_set,
    number,
    read_xml,
    stated_size,
)
from data_prep.reading.names import split_of
from data_prep.reading.shapes import are_numbers, box_of_corner, box_of_ellipse, box_of_points, box_of_turned
from data_prep.reading.source import Item, Options, Row, Sample, Source
from data_prep.reading.spool import Spool

_WITHOUT_BOX = {"points", "polyline", "skeleton", "tag"}  # types of labels that no box bears


def recognise(sample: Sample) -> str | None:
    return next((f"{path} begins with <annotations>" for path, tag in sample.xml_roots if tag == "annotations"), None)


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["annotations.xml", "*.xml"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings)
    for file, split in files:
        tree = read_xml(file, "annotations", found)
        if tree is not None:
            _read_file(tree, file, split, source, options, found)
    return found


def _read_file(
    tree: ElementTree.Element, file: Path, split: str | None, source: Path, options: Options, found: Source
) -> None:
    if tree.find("track") is not None:
        found.errors.append(f"{file} is an export of CVAT for video. Export the task as CVAT for images.")
        return
    labels = [
        label
        for label in tree.findall("meta//labels/label")
        if label.find("parent") is None and label.findtext("type") not in _WITHOUT_BOX
    ]
    names = [(label.findtext("name") or "").strip() for label in labels]
    found.classes += [name for name in dict.fromkeys(names) if name not in found.classes]
    pictures = image_finder_for(file, source, options)
    nodes = tree.findall("image")
    bearers = Counter((node.get("name"), _split_of(node, split)) for node in nodes)
    owners: dict[Path, str] = {}
    for node in nodes:
        named, subset, own_split = node.get("name"), node.get("subset"), _split_of(node, split)
        if not named:
            found.errors.append(f"{file}: image {node.get('id')!r} has no name")
            continue
        picture = _find_image(named, subset, pictures)
        owner = " of ".join(f"{key} {node.get(key)}" for key in ("task_id", "subset") if node.get(key))
        if picture.is_file() and owners.setdefault(picture, owner) != owner:
            found.errors.append(
                f"{file}: {named} of {owners[picture]}, and of {owner}: there is only one such picture, {picture}, and "
                "nothing says whose it is. Export each task by itself, or the project with its images"
            )
            continue
        in_subset = f"{subset}/{named}" if subset and bearers[named, own_split] > 1 else named
        name = image_name(in_subset, picture, file, source)
        item = Item(name, str(picture), [], own_split)
        item.size = stated_size(node.get("width"), node.get("height"))
        _read_shapes(node, item)
        found.items.append(item)


def _split_of(image: ElementTree.Element, split: str | None) -> str | None:
    """A picture's own split, or else its file's."""
    return split_of(image.get("subset") or "") or split


def _find_image(named: str, subset: str | None, pictures: ImageFinder) -> Path:
    """CVAT puts the pictures of a subset into a folder of its name."""
    picture = pictures.find(f"{subset}/{named}") if subset else pictures.find(named)
    return picture if picture.is_file() else pictures.find(named)


def _read_shapes(image: ElementTree.Element, item: Item) -> None:
    for node in image:
        if node.tag == "tag":  # says something of the whole picture
            continue
        label, box_xyxy = (node.get("label") or "").strip(), _box_of(node)
        if box_xyxy is None:
            item.no_box.append({"shape": node.tag, "label": label})
        else:
            extra = {entry.get("name"): (entry.text or "").strip() for entry in node.findall("attribute")}
            extra = {key: value for key, value in extra.items() if key}
            item.rows.append(Row(box_xyxy, label, is_set(extra.pop("difficult", False)), extra))


def _box_of(node: ElementTree.Element) -> list | None:
    """The box of a shape; None for those that enclose nothing."""
    match node.tag:
        case "box":
            box_xyxy = _numbers(node, "xtl", "ytl", "xbr", "ybr")
            if not are_numbers(box_xyxy, 4):
                return box_xyxy
            middle = [(box_xyxy[0] + box_xyxy[2]) / 2, (box_xyxy[1] + box_xyxy[3]) / 2]
            return box_of_turned(box_xyxy, number(node.get("rotation", "0")), middle)
        case "polygon":
            points = [point.split(",") for point in node.get("points", "").split(";")]
            return box_of_points([[number(value) for value in point] for point in points])
        case "ellipse":
            return box_of_ellipse(*_numbers(node, "cx", "cy", "rx", "ry"), number(node.get("rotation", "0")))
        case "mask":
            return box_of_corner(*_numbers(node, "left", "top", "width", "height"))
    return None


def _numbers(node: ElementTree.Element, *keys: str) -> list:
    return [number(node.get(key)) for key in keys]
