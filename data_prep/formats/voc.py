"""Pascal VOC: one XML file for each image, in Annotations next to JPEGImages, or in the folder of
the images.

Coordinates are used unchanged; VOC's 1-based pixels are not shifted. The splits are defined by
ImageSets/Main/{train,val,trainval,test}.txt. Per-class lists such as cat_train.txt are ignored.
"""

import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import files_below, is_image
from data_prep.reading.annotation_files import AnnotationFile, check_source_exists, folder_of, source_files
from data_prep.reading.image_finder import ImageFinder, image_finder_for, list_unannotated_images
from data_prep.reading.names import normal, relative_name, without_suffix
from data_prep.reading.source import Item, Options, Row, Sample, Source, Unreadable, problem
from data_prep.reading.split_names import ALIASES, split_of_folders
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import LABELME_XML_TAGS, read_text, read_xml
from data_prep.reading.values import is_set, number, stated_size

_ANNOTATION_FOLDERS = {"annotations", "labels", "xml", "xmls"}
_NEAR = 2  # so many folders below SOURCE, several folders of annotations are several datasets
_SPLIT_OF_LIST = {word: split for split, words in ALIASES.items() for word in words}


@dataclass(frozen=True)
class _Devkit:
    """A VOC dataset: its root and the folder of its XML files, which are the same if the XML files are next to the images.
    Items are named relative to `top`. `split` is set if SOURCE has a devkit for each split."""

    root: Path
    annotations: Path
    top: Path
    split: str | None = None


def recognise(sample: Sample) -> str | None:
    return next((f"{path} begins with <annotation>" for path, tag in sample.xml_roots if tag == "annotation"), None)


def read(source: Path, options: Options) -> Source:
    check_source_exists(source)
    found = Source(Spool(options.scratch), layout="xyxy")
    devkits = _find_devkits(source, options)
    if devkits[0].top == source:  # names are relative to SOURCE
        found.folder = folder_of((path for devkit in devkits for path in _xml_files(devkit)), source)
    for devkit in devkits:
        _read_devkit(devkit, options, found)
    if not len(found.items) and not found.errors:
        raise UserError(f"{source} contains no .xml file. VOC has one for each image.")
    list_unannotated_images(source, options, found)
    return found


def _find_devkits(source: Path, options: Options) -> list[_Devkit]:
    """One devkit, or one for each split that a folder above it is named after; at any depth."""
    if source.is_file():
        raise UserError(f"{source} is a file; VOC needs the folder that contains Annotations, or the .xml files.")
    files = [path for path in source_files(source, options) if _is_annotation(path)]
    annotations = sorted({folder for path in files if (folder := _annotation_folder(path, source))})
    splits = [split_of_folders(relative_name(path, source)) for path in annotations]
    are_splits = None not in splits and len({*splits}) == len(splits)
    is_near = any(len(path.relative_to(source).parts) <= _NEAR for path in annotations)
    if not annotations or (len(annotations) > 1 and not are_splits and not is_near):
        return [_Devkit(root=source, annotations=source, top=source)]
    if len(annotations) == 1:
        return [_Devkit(annotations[0].parent, annotations[0], top=annotations[0])]
    if not are_splits:
        paths = [str(path.parent) for path in annotations]
        raise UserError(f"{source} contains several VOC datasets; pass one of them:", paths)
    return [_Devkit(path.parent, path, source, split) for path, split in zip(annotations, splits, strict=True)]


def _annotation_folder(path: Path, source: Path) -> Path | None:
    """The highest folder above an XML file, in SOURCE or else SOURCE itself, that is called like a folder of annotations."""
    folders = [folder for folder in path.parents if folder != source and folder.is_relative_to(source)]
    named = (folder for folder in [*reversed(folders), source] if folder.name.lower() in _ANNOTATION_FOLDERS)
    return next(named, None)


def _xml_files(devkit: _Devkit) -> list[Path]:
    return sorted(path for path in files_below(devkit.annotations) if _is_annotation(path))


def _is_annotation(path: Path) -> bool:
    return path.suffix.lower() == ".xml" and not path.name.startswith(".")


def _read_devkit(devkit: _Devkit, options: Options, found: Source) -> None:
    """Adds the items of a devkit. Its image sets define their splits; without them, its own split applies."""
    files = _xml_files(devkit)
    ids = {path: relative_name(path.with_suffix(""), devkit.annotations) for path in files}
    splits = _read_image_sets(devkit.root, {*ids.values()}, found)
    finders: dict[Path, ImageFinder] = {}
    for path in files:
        if path.parent not in finders:
            finders[path.parent] = _image_finder(path, devkit, options)
        item = _read_item(path, devkit.top, finders[path.parent])
        if isinstance(item, Unreadable):
            found.errors.append(item.reason)
            continue
        for item.split in splits.get(ids[path], [None]) if splits else [devkit.split]:
            found.items.append(item)


# ---- image sets ------------------------------------------------------------------------------------------------------


def _read_image_sets(root: Path, ids: set[str], found: Source) -> dict[str, list[str]]:
    """{id: its splits}, empty if there are no lists."""
    folder = next((path for path in (root / "ImageSets" / "Main", root / "ImageSets") if path.is_dir()), None)
    normalized = {normal(item_id): item_id for item_id in ids}
    lists = sorted(path for path in folder.glob("*.txt") if path.stem.lower() in _SPLIT_OF_LIST) if folder else []
    splits: dict[str, list[str]] = {}
    for path in lists:
        names = [_listed_id(line.strip(), normalized) for line in read_text(path).splitlines() if line.strip()]
        split = _SPLIT_OF_LIST[path.stem.lower()]
        for name in dict.fromkeys(names):
            if name not in ids:
                found.problems.append(problem(name, "no_annotation", path.name, "image left out"))
            elif split not in splits.setdefault(name, []):
                splits[name].append(split)
        if not any(name in ids for name in names):
            found.warnings.append(f"{path} defines the {split} split, but none of its annotations exist")
    return splits


def _listed_id(line: str, ids: dict[str, str]) -> str:
    """The id, of {normalized id: id}, in a line of a list: the whole line or its first word, without an image's extension."""
    spellings = [line, line.split()[0]]
    spellings += [without_suffix(spelling) for spelling in spellings if is_image(Path(spelling))]
    return next((ids[normal(spelling)] for spelling in spellings if normal(spelling) in ids), spellings[1])


# ---- images ----------------------------------------------------------------------------------------------------------


def _image_finder(path: Path, devkit: _Devkit, options: Options) -> ImageFinder:
    """The image folder may have the same subfolders as the folder of the XML files."""
    below = path.parent.relative_to(devkit.annotations)
    folders = [options.images] if options.images else [devkit.root / "JPEGImages", devkit.root / "images"]
    mirrored = [folder / below for folder in folders if (folder / below).is_dir()]
    return image_finder_for(AnnotationFile(path, devkit.root), options, mirrored)


def _find_image(path: Path, filename: str, images: ImageFinder) -> Path:
    """The image with the XML file's own name; else the one in <filename>, which is often wrong after a dataset is renamed."""
    if Path(filename).stem == path.stem and os.path.isfile(image_path := images.find(filename)):
        return image_path
    image_path = images.find(path.stem)
    return image_path if os.path.isfile(image_path) or not filename else images.find(filename)


# ---- annotations -----------------------------------------------------------------------------------------------------


def _read_item(path: Path, top: Path, images: ImageFinder) -> Item | Unreadable:
    tree = read_xml(path, "annotation")
    if isinstance(tree, Unreadable):
        return tree
    if tree.find(".//bndbox") is None and any(tree.find(f".//{tag}") is not None for tag in LABELME_XML_TAGS):
        return Unreadable(f"{path}: XML of the LabelMe web tool, not VOC. Use the format labelme_xml.")
    image_path = _find_image(path, (tree.findtext("filename") or "").strip(), images)
    return Item(
        name=relative_name(path.with_name(path.stem + image_path.suffix), top),
        image_path=str(image_path),
        rows=[_read_object(node) for node in tree.findall("object")],
        size=stated_size(tree.findtext("size/width"), tree.findtext("size/height")),
    )


def _read_object(node: ElementTree.Element) -> Row:
    box_xyxy = [number(node.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
    return Row(box_xyxy, (node.findtext("name") or "").strip(), ignore=is_set(node.findtext("difficult")))
