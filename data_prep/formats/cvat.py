"""CVAT for images or video 1.1: annotations.xml of an export, with or without the folder `images`.

Boxes are used as they are; rotated boxes, polygons, ellipses and masks are replaced by their
bounding box. Points, lines, cuboids and skeletons are left out and listed. An object's
attributes are kept. An image's subset is its split. If images of several subsets have the same
name and their subset is not a split, the subset becomes part of their ids.

Of a video, the images are the frames that CVAT exports, frame_000000 and so on. A box of a
track counts in the frames where it is not `outside`.
"""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from data_prep.formats.cvat_shapes import class_names, read_shape
from data_prep.formats.cvat_video import read_frames
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import ImageFinder, image_finder_for, image_name
from data_prep.reading.source import Item, Options, Sample, Source, Unreadable
from data_prep.reading.split_names import split_of
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_xml
from data_prep.reading.values import stated_size


def recognise(sample: Sample) -> str | None:
    return next((f"{path} begins with <annotations>" for path, tag in sample.xml_roots if tag == "annotations"), None)


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["annotations.xml", "*.xml"], options)
    found = Source(Spool(options.scratch), layout="xyxy", warnings=warnings, folder=folder)
    for file in files:
        tree = read_xml(file.path, "annotations")
        if isinstance(tree, Unreadable):
            found.errors.append(tree.reason)
        elif tree.find("image") is None:
            read_frames(tree, file, options, found)
        else:
            _read_file(tree, file, options, found)
    return found


def _read_file(tree: ElementTree.Element, file: AnnotationFile, options: Options, found: Source) -> None:
    found.classes += [name for name in class_names(tree) if name not in found.classes]
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
        for shape in node:
            read_shape(shape, shape.get("label"), item)
        found.items.append(item)


def _split_of(image: ElementTree.Element, file: AnnotationFile) -> str | None:
    """The image's own split; else that of its annotation file."""
    return split_of(image.get("subset") or "") or file.split


def _find_image(name: str, subset: str | None, images: ImageFinder) -> Path:
    """CVAT puts the images of a subset into a folder with the subset's name."""
    image_path = images.find(f"{subset}/{name}") if subset else images.find(name)
    return image_path if image_path.is_file() else images.find(name)
