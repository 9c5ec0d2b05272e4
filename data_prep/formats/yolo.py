"""YOLO: one text file of rows for each image, and class names in data.yaml (or classes.txt).

A row is `class cx cy w h` in fractions of the image, optionally followed by a confidence; or
`class x y x y x y …`, a polygon, which is replaced by its bounding box; or, if data.yaml has
`kpt_shape`, a box followed by key points, which are left out. An image without a label file is
an empty image.
"""

import os
import re
from collections import defaultdict
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import is_image
from data_prep.formats import dota
from data_prep.formats.yolo_images import Images, find_images
from data_prep.formats.yolo_labels import LabelFiles, holds_rows, is_of_run, warn_of_runs
from data_prep.formats.yolo_settings import NAME_FILES, Settings, files_with_names, read_settings, yaml_with_names
from data_prep.reading.annotation_files import check_source_exists
from data_prep.reading.image_finder import list_images
from data_prep.reading.names import normal, relative_name
from data_prep.reading.row_files import file_with_rows
from data_prep.reading.source import Item, Options, Sample, Source
from data_prep.reading.split_names import split_of_folders
from data_prep.reading.spool import Spool
from data_prep.reading.values import number


def recognise(sample: Sample) -> str | None:
    if file_with_rows(sample, dota.read_row):  # YOLOv5-OBB: a data.yaml with labels of another format
        return None
    if path := yaml_with_names(sample):
        return f"{path} has names"
    labels = [path for path in sample.of_kind(".txt") if path.name not in NAME_FILES]
    stems = {normal(path.stem) for path in sample.files if is_image(path)}
    rows = (path for path in labels if normal(path.stem) in stems and holds_rows(path))
    if path := next(rows, None):
        return f"{path} begins with a row of numbers, and there is an image of that name"
    names = files_with_names(sample.files)
    path = next((path for path in labels if holds_rows(path)), None) if names else None
    return f"{names[0]} contains class names, and {path} begins with a row of numbers" if path else None


def read(source: Path, options: Options) -> Source:
    check_source_exists(source)
    settings = read_settings(source, options)
    found = Source(Spool(options.scratch), layout="cxcywh", fractions=True, classes=list(settings.names.values()))
    _check_class_count(settings, found)
    images = find_images(settings, options, found)
    if not images.by_split:
        reasons = "; ".join(found.errors + found.warnings) or "Name their folder with --images."
        raise UserError(f"{settings.where}: found no image. {reasons}")
    labels = LabelFiles(settings, options, found)
    used = _read_images(images, labels)
    if not used:
        _raise_without_labels(images, labels)
    _warn_of_splits_without_labels(images, labels)
    if images.declared:
        _warn_of_undeclared_splits(images, labels)
    _add_missing_images(images, labels, used)
    return found


def _check_class_count(settings: Settings, found: Source) -> None:
    count = settings.values.get("nc")
    if count is not None and (number(count) if isinstance(count, str) else count) != len(settings.names):
        found.warnings.append(f"{settings.where}: nc is {count}, but names has {len(settings.names)}")


def _image_root(labels: LabelFiles) -> Path:
    """The folder that names of images are relative to."""
    return labels.options.images or labels.settings.root


def _read_images(images: Images, labels: LabelFiles) -> dict[Path, Path]:
    """Adds an item for each image, and returns {label file: its image}."""
    found = labels.found
    used: dict[Path, Path] = {}
    for image, split in images.by_split:
        label_file = labels.find(image)
        if label_file and used.setdefault(label_file, image) != image:
            found.errors.append(f"{label_file} would be the label file of both {used[label_file]} and {image}")
        rows = labels.read(label_file) if label_file else []
        found.items.append(Item(relative_name(image, _image_root(labels)), str(image), rows, split))
    return used


def _raise_without_labels(images: Images, labels: LabelFiles) -> None:
    """Raises a UserError that says what is missing: the images or the label files."""
    count = len(images.by_split)
    if not any(image.is_file() for image, _ in images.by_split):
        raise UserError(
            f"{labels.settings.where}: none of its {count} images exists. Name their folder with --images. Looked for:",
            [str(image) for image, _ in images.by_split[:5]],
        )
    raise UserError(
        f"{labels.settings.root}: none of its {count} images has a label file. Looked for:",
        [str(path) for path in labels.candidates(images.by_split[0][0])],
    )


def _warn_of_splits_without_labels(images: Images, labels: LabelFiles) -> None:
    members: dict[str | None, list[Path]] = defaultdict(list)
    for image, split in images.by_split:
        members[split or split_of_folders(relative_name(image, _image_root(labels)))].append(image)
    for split, paths in members.items():
        if any(labels.find(image) for image in paths):
            continue
        candidates = ", ".join(str(path) for path in labels.candidates(paths[0]))
        which = f"the {split} split" if split else "no split"
        labels.found.warnings.append(
            f"none of the {len(paths)} images of {which} has a label file, so all count as empty; looked for {candidates}"
        )


def _warn_of_undeclared_splits(images: Images, labels: LabelFiles) -> None:
    """Warns of folders of labelled images that are named after a split that data.yaml does not name."""
    settings, root = labels.settings, _image_root(labels)
    declared = {image for image, _ in images.by_split}
    undeclared: dict[str, list[Path]] = defaultdict(list)
    for image in list_images(root, labels.options):
        split = split_of_folders(relative_name(image, root))
        if not split or split in images.declared or image.absolute() in declared or is_of_run(image, root):
            continue
        if labels.find(image):
            undeclared[split].append(image)
    for split, paths in undeclared.items():
        folder = os.path.commonpath([path.parent for path in paths])
        labels.found.warnings.append(
            f"{settings.where} names no {split} split, so {len(paths)} labelled image(s) in {folder} are left out. To use them, "
            f"add the line `{'val' if split == 'validation' else split}: {os.path.relpath(folder, settings.root)}`"
        )


def _add_missing_images(images: Images, labels: LabelFiles, used: dict[Path, Path]) -> None:
    """Adds an item for each label file without an image, so that the image is reported as missing with all others."""
    root, folder = labels.settings.root, _image_root(labels)
    predictions = []
    for path, split in labels.without_image(images.label_folders, used):
        if is_of_run(path, root):
            predictions.append(path)
            continue
        below = os.path.relpath(path.with_suffix(""), root)
        image = folder / re.sub(r"\blabels\b", "." if labels.options.images else "images", below, count=1)
        labels.found.items.append(Item(relative_name(image, folder), str(image), labels.read(path), split))
    warn_of_runs("label file", predictions, labels.found)
