"""CVAT's labels and shapes, which its exports for images and for video share."""

import xml.etree.ElementTree as ElementTree
from typing import Any

from data_prep.reading.shapes import are_numbers, box_of_corner, box_of_ellipse, box_of_points, box_of_rotated
from data_prep.reading.source import Item, Row
from data_prep.reading.values import is_set, number

_WITHOUT_BOX = {"points", "polyline", "skeleton", "tag"}  # types of labels whose objects have no box


def class_names(tree: ElementTree.Element) -> list[str]:
    """The labels whose objects have boxes."""
    labels = [
        label
        for label in tree.findall("meta//labels/label")
        if label.find("parent") is None and label.findtext("type") not in _WITHOUT_BOX
    ]
    return list(dict.fromkeys((label.findtext("name") or "").strip() for label in labels))


def read_shape(node: ElementTree.Element, label: str | None, item: Item) -> None:
    """Adds the object of a shape to its image."""
    if node.tag == "tag":  # describes the whole image
        return
    label, box_xyxy = (label or "").strip(), _box_of(node)
    if box_xyxy is None:
        item.no_box.append({"shape": node.tag, "label": label})
        return
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
