"""LabelMe 3.0, the web tool: one XML file for each image, in Annotations next to Images, or next
to the images, as CVAT exports it.

Polygons are replaced by their bounding box; objects that were segmented with scribbles have a
box of their own. Objects that were deleted in the tool are left out.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from data_prep.reading.annotation_files import check_is_folder, folder_of, source_files
from data_prep.reading.image_finder import list_unannotated_images
from data_prep.reading.image_pairs import ImagesByStem
from data_prep.reading.shapes import box_of_points
from data_prep.reading.source import Item, Options, Row, Sample, Source, Unreadable
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import LABELME_XML, read_xml
from data_prep.reading.values import is_set, number, stated_size


def recognise(sample: Sample) -> str | None:
    return next((f"{path} is an annotation of LabelMe" for path, tag in sample.xml_roots if tag == LABELME_XML), None)


def read(source: Path, options: Options) -> Source:
    check_is_folder(source)
    files = [path for path in source_files(source, options) if path.suffix.lower() == ".xml"]
    if not files:
        raise UserError(f"{source} and its subfolders contain no .xml file. LabelMe writes one for each image.")
    found = Source(Spool(options.scratch), layout="xyxy", folder=folder_of(files, source))
    images = ImagesByStem(source, options)
    for path in files:
        tree = read_xml(path, "annotation")
        if isinstance(tree, Unreadable):
            found.errors.append(tree.reason)
            continue
        named = (tree.findtext("filename") or "").strip()
        image = images.nearest(path, path.stem if path.stem in images or not named else Path(named).name)
        size = stated_size(tree.findtext("imagesize/ncols"), tree.findtext("imagesize/nrows"))
        item = Item(images.name_of(image), str(image), [], size=size)
        _read_objects(tree, item)
        found.items.append(item)
    list_unannotated_images(source, options, found)
    return found


def _read_objects(tree: ElementTree.Element, item: Item) -> None:
    for node in tree.findall("object"):
        if is_set((node.findtext("deleted") or "").strip()):
            continue
        label, box_xyxy = (node.findtext("name") or "").strip(), _box_of(node)
        if box_xyxy is None:
            item.no_box.append({"name": label})
        else:
            item.rows.append(Row(box_xyxy, label))


def _box_of(node: ElementTree.Element) -> list[Any] | None:
    """The box of an object; None if it has neither a polygon nor a box."""
    if (box := node.find("segm/box")) is not None:
        return [number(box.findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")]
    if node.find("polygon") is None:
        return None
    return box_of_points([[number(point.findtext(axis)) for axis in "xy"] for point in node.findall("polygon/pt")])
