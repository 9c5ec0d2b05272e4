"""Pascal VOC: one XML file for each picture, in Annotations beside JPEGImages, or in the pictures'
own folder.

Boxes are taken as written. ImageSets/Main/{train,val,trainval,test}.txt divide the images;
files for single classes (cat_train.txt) do not.
"""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import files_below, is_image
from data_prep.reading.files import (
    ImageFinder,
    existing,
    image_finder_for,
    is_set,
    number,
    read_text,
    read_xml,
    relative_name,
    stated_size,
)
from data_prep.reading.names import ALIASES, split_of, split_of_folders, without_suffix
from data_prep.reading.source import Item, Options, Row, Sample, Source, problem
from data_prep.reading.spool import Spool

_ANNOTATION_FOLDERS = {"annotations", "labels", "xml", "xmls"}
_LIST_NAMES = {word for words in ALIASES.values() for word in words}


def recognise(sample: Sample) -> str | None:
    return next((f"{path} begins with <annotation>" for path, tag in sample.xml_roots if tag == "annotation"), None)


def read(source: Path, options: Options) -> Source:
    found = Source(Spool(options.scratch), layout="xyxy")
    for root, annotations, split in _find_annotations(existing(source)):
        # Several data sets are the splits of one: names tell from which an image is.
        _read_set(root, annotations, source if split else annotations, split, options, found)
    if not len(found.items) and not found.errors:
        raise UserError(f"{source} holds no .xml file. VOC has one for each picture.")
    _warn_of_images_without_xml(found)
    return found


def _read_set(root: Path, annotations: Path, top: Path, split: str | None, options: Options, found: Source) -> None:
    """The images of one folder of XML files, named as seen from `top`, and of `split` where no lists divide them."""
    files = sorted(path for path in files_below(annotations) if _is_annotation(path))
    pictures: dict[Path, ImageFinder] = {}
    splits = _read_image_sets(root, {relative_name(file.with_suffix(""), annotations) for file in files}, found)
    for file in files:
        if file.parent not in pictures:
            # The XML's own folder has a counterpart below that of the pictures.
            below = file.parent.relative_to(annotations)
            homes = [options.images] if options.images else [root / "JPEGImages", root / "images"]
            mirrored = [home / below for home in homes if (home / below).is_dir()]
            pictures[file.parent] = image_finder_for(file, root, options, mirrored)
        item = _read_item(file, top, pictures[file.parent], found)
        if item and splits is None:
            item.split = split
            found.items.append(item)
        elif item:
            own = splits.get(relative_name(file.with_suffix(""), annotations), [None])
            for item.split in own:
                found.items.append(item)


def _is_annotation(path: Path) -> bool:
    return path.suffix.lower() == ".xml" and not path.name.startswith(".")


def _warn_of_images_without_xml(found: Source) -> None:
    used = {item.picture for item in found.items}
    folders = sorted({Path(path).parent for path in used if os.path.isfile(path)})
    listed = (path for folder in folders for path in sorted(folder.iterdir()) if is_image(path))
    bare = [path for path in listed if str(path) not in used]
    if bare:
        found.warnings.append(f"{len(bare)} picture(s) have no .xml file and are left out, such as {bare[0]}")


def _find_annotations(source: Path) -> list[tuple[Path, Path, str | None]]:
    """[(devkit root, folder of the XML files, split)]: one without a split, or one for each that a folder above is named
    after. Root and folder are SOURCE where the files lie with the pictures."""
    if source.is_file():
        raise UserError(f"{source} is a file; VOC needs the folder that holds Annotations, or the .xml files.")
    folders = [path for path in [source, *sorted(source.glob("*")), *sorted(source.glob("*/*"))] if path.is_dir()]
    roots = [
        path
        for path in folders
        if path.name.lower() in _ANNOTATION_FOLDERS and any(map(_is_annotation, files_below(path)))
    ]
    if len(roots) < 2:
        return [(path.parent, path, None) for path in roots] or [(source, source, None)]
    splits = [split_of_folders(relative_name(path, source)) for path in roots]
    if None in splits or len({*splits}) < len(splits):
        raise UserError(
            f"{source} holds several VOC data sets; pass one of them:", [str(path.parent) for path in roots]
        )
    return [(path.parent, path, split) for path, split in zip(roots, splits, strict=True)]


def _read_image_sets(root: Path, ids: set[str], found: Source) -> dict[str, list[str]] | None:
    """{id: its splits}, or None where the source has no lists."""
    folder = next((path for path in (root / "ImageSets" / "Main", root / "ImageSets") if path.is_dir()), None)
    lists = sorted(path for path in folder.glob("*.txt") if path.stem.lower() in _LIST_NAMES) if folder else []
    splits: dict[str, list[str]] = {}
    for path in lists:
        names = [_listed_id(line.strip(), ids) for line in read_text(path).splitlines() if line.strip()]
        split = split_of(path.stem)
        for name in dict.fromkeys(names):
            if name not in ids:
                found.problems.append(problem(name, "no_annotation", path.name, "image left out"))
            elif split not in splits.setdefault(name, []):
                splits[name].append(split)
        if not any(name in ids for name in names):
            found.warnings.append(f"{path} names the {split} split, but none of its annotations are there")
    return splits if splits else None


def _listed_id(line: str, ids: set[str]) -> str:
    """The id that a line of a list speaks of: the whole line, its first word, or either with a picture's ending."""
    spellings = [line, line.split()[0]]
    spellings += [without_suffix(spelling) for spelling in spellings if is_image(Path(spelling))]
    return next((spelling for spelling in spellings if spelling in ids), spellings[1])


def _read_item(file: Path, top: Path, pictures: ImageFinder, found: Source) -> Item | None:
    tree = read_xml(file, "annotation", found)
    if tree is None:
        return None
    picture = _find_image(file, (tree.findtext("filename") or "").strip(), pictures)
    name = relative_name(file.with_name(file.stem + picture.suffix), top)
    size = stated_size(tree.findtext("size/width"), tree.findtext("size/height"))
    return Item(name, str(picture), [_read_object(node) for node in tree.findall("object")], size=size)


def _find_image(file: Path, filename: str, pictures: ImageFinder) -> Path:
    """The XML's own name decides: renaming a data set often leaves a stale <filename> behind."""
    if Path(filename).stem == file.stem and os.path.isfile(picture := pictures.find(filename)):
        return picture
    picture = pictures.find(file.stem)
    return picture if os.path.isfile(picture) or not filename else pictures.find(filename)


def _read_object(node: ElementTree.Element) -> Row:
    box_xyxy = [number(node.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
    return Row(box_xyxy, (node.findtext("name") or "").strip(), ignore=is_set(node.findtext("difficult")))
