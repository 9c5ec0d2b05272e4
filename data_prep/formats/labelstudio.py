"""Label Studio: its JSON or JSON-MIN export.

Rectangles are used as they are; rotated rectangles, polygons and ellipses are replaced by their
bounding box. Key points and brush strokes are left out and listed. If a task has several
annotations, the first one that was not cancelled is used; a task without any is left out. If a
region has labels of several controls, --label-field names the one (`from_name`) with the class.
A region whose note (`meta.text`) is "ignore" is an ignored object. Images of tasks that
`data_prep review` wrote keep their ids.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from boxtune.common.problems import join_names
from data_prep.reading.annotation_files import AnnotationFile, find_annotation_files
from data_prep.reading.image_finder import ImageFinder, image_finder_for, image_name
from data_prep.reading.names import safe_name, without_suffix
from data_prep.reading.shapes import are_numbers, box_of_ellipse, box_of_points, box_of_rotated
from data_prep.reading.source import Item, Options, Row, Sample, Source, problem
from data_prep.reading.spool import Spool
from data_prep.reading.text_files import read_json
from data_prep.reading.values import stated_size

_IMAGE_FIELDS = ("image", "img", "picture", "photo", "url", "ocr")
_IMAGE_ENDING = re.compile(r"\.(jpe?g|png|bmp|gif|tiff?|webp)\b", re.IGNORECASE)

Result = dict[str, Any]  # what an annotator did in one control, such as a rectangle or a choice


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        for task in value if isinstance(value, list) else []:
            if isinstance(task, dict) and isinstance(task.get("data"), dict) and "annotations" in task:
                return f"{path} has tasks with data and annotations"
            if isinstance(task, dict) and "annotation_id" in task:
                return f"{path} has tasks with annotation_id"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings, folder = find_annotation_files(source, ["*.json"], options)
    found = Source(Spool(options.scratch), layout="xyxy", fractions=True, warnings=warnings, folder=folder)
    controls: set[str] = set()
    for file in files:
        tasks = read_json(file.path)
        if isinstance(tasks, list):
            controls |= _read_tasks(tasks, file, options, found)
        else:
            found.errors.append(f"{file}: Label Studio's export is a list of tasks, got {type(tasks).__name__}")
    if options.label_field and options.label_field not in controls:
        known = join_names(sorted(controls)) or "none"
        found.errors.append(
            f"--label-field {options.label_field}: there is no control with that name. Controls are: {known}"
        )
    return found


def _read_tasks(tasks: list[Any], file: AnnotationFile, options: Options, found: Source) -> set[str]:
    """Adds the items of a file, and returns the names of its controls."""
    controls: set[str] = set()
    images = image_finder_for(file, options)
    done: set[str] = set()
    for number, task in enumerate(tasks):
        where = f"{file}: task {task.get('id', number) if isinstance(task, dict) else number}"
        if fault := _fault(task) or _image_fault(task, options.image_field):
            found.errors.append(f"{where} {fault}, got {task!r:.100}")
            continue
        address = _image_address(task, options.image_field)
        image_path = _find_image(address, images)
        name = _id_of(task, image_path) or image_name(_path_of(address), image_path, file)
        if "annotations" not in task and str(task.get("id")) in done:  # JSON-MIN has an entry for each annotator
            found.problems.append(problem(without_suffix(name), "annotations", task["id"], "the first one taken"))
            continue
        if task.get("id") is not None:
            done.add(str(task["id"]))
        results = _results_of(task, name, found)
        if results is None:
            continue
        controls |= {str(result.get("from_name")) for result in results}
        item = Item(name, str(image_path), [], file.split, _size_of(results))
        found.errors += [f"{where}: {fault}" for fault in _add_regions(item, results, options.label_field)]
        found.items.append(item)
    return controls


def _fault(task: Any) -> str | None:
    """Why a task cannot be read, or None."""
    if not isinstance(task, dict):
        return "must be an object"
    annotations = task.get("annotations", task.get("completions")) or []
    if not _are_objects(annotations):
        return "needs a list of annotations"
    for annotation in annotations:
        results = annotation.get("result") or []
        if not _are_objects(results):
            return "needs a list `result` in each annotation"
        if not all(isinstance(result.get("value") or {}, dict) for result in results):
            return "has a result whose value is not an object"
    return None


def _are_objects(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


# ---- images ----------------------------------------------------------------------------------------------------------


def _image_fault(task: dict[str, Any], image_field: str | None) -> str | None:
    """Why a task has no image, or None."""
    return None if _image_address(task, image_field) else "names no image; give its field with --image-field"


def _image_address(task: dict[str, Any], image_field: str | None) -> str:
    """The address of a task's image: the named field, or a field with a usual name, or the only text that ends like an image
    file; "" if there is none."""
    data = task.get("data", task)
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    if image_field:
        return texts.get(image_field, "")
    usual = [texts[key] for key in _IMAGE_FIELDS if texts.get(key)]
    if usual:
        return usual[0]
    similar = [value for value in texts.values() if _IMAGE_ENDING.search(value)]
    return similar[0] if len(similar) == 1 else ""


def _id_of(task: dict[str, Any], image_path: Path) -> str | None:
    """The name of the image in the dataset that a task of `data_prep review` is from; None for other tasks."""
    data = task.get("data", task)
    known = data.get("boxtune_id") if isinstance(data, dict) else None
    return safe_name(f"{known}{image_path.suffix}") if isinstance(known, str) and known else None


def _path_of(address: str) -> str:
    """The path in "/data/local-files/?d=a/b.jpg", "s3://bucket/a/b.jpg" or "/data/upload/1/a.jpg"."""
    try:
        # Only web addresses have fragments; elsewhere # is part of the name.
        parts = urlsplit(address, allow_fragments=address.startswith("http"))
    except ValueError:  # brackets that do not contain an IPv6 address
        return address
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path).lstrip("/") or address


def _find_image(address: str, images: ImageFinder) -> Path:
    """The image by its unchanged address, by its path or the end of that, or without the eight hexadecimal digits that an
    upload adds before the name."""
    path = _path_of(address)
    without_digits = re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(path).name)
    names = (address, f"/{path}", without_digits)  # of an absolute path, the finder also tries the end
    candidates = (images.find(name) for name in names)
    return next((image_path for image_path in candidates if os.path.isfile(image_path)), images.find(path))


# ---- regions ---------------------------------------------------------------------------------------------------------


@dataclass
class _Region:
    """A marked region. `box_xyxy` is in fractions of the image, empty if the region has no box. `ignore`: it is an ignored
    object. `labels` are the labels that each control gives it."""

    box_xyxy: list[Any]
    ignore: bool = False
    labels: dict[str, list[Any]] = field(default_factory=dict)


def _results_of(task: dict[str, Any], name: str, found: Source) -> list[Result] | None:
    """The results of the annotation that is used; None if the task has no annotation."""
    if not isinstance(task.get("data"), dict) and not {"annotations", "completions"} & {*task}:
        # JSON-MIN: {control: [value, …]}
        controls = {key: values for key, values in task.items() if isinstance(values, list)}
        return [
            {"from_name": key, "value": value, **value}
            for key, values in controls.items()
            for value in values
            if isinstance(value, dict)
        ]
    annotations = task.get("annotations", task.get("completions")) or []
    usable = [entry for entry in annotations if not entry.get("was_cancelled") and not entry.get("skipped")]
    if not usable:
        found.problems.append(problem(without_suffix(name), "no_annotation", len(annotations), "image left out"))
        return None
    if len(usable) > 1:
        found.problems.append(problem(without_suffix(name), "annotations", len(usable), "the first one taken"))
    return usable[0].get("result") or []


def _size_of(results: list[Result]) -> tuple[int, int] | None:
    sizes = (stated_size(result.get("original_width"), result.get("original_height")) for result in results)
    return next((size for size in sizes if size), None)


def _add_regions(item: Item, results: list[Result], label_field: str | None) -> list[str]:
    """Adds a row to the item for each region, and returns the errors."""
    errors = []
    for region in _regions_of(results):
        labels = [region.labels.get(label_field, [])] if label_field else list(region.labels.values())
        if not region.box_xyxy:
            item.no_box.append({"labels": region.labels})
        elif len(labels) > 1:
            errors.append(f"a region has labels of {', '.join(region.labels)}; choose one with --label-field")
        elif labels and len(labels[0]) > 1:
            errors.append(f"a region has {len(labels[0])} labels: {labels[0]!r:.100}; it must have one")
        else:
            category = str(labels[0][0]).strip() if labels and labels[0] else ""
            item.rows.append(Row(region.box_xyxy, category, region.ignore))
    return errors


def _regions_of(results: list[Result]) -> list[_Region]:
    """The regions of an annotation, in order.

    A region may have several results with the same id and shape, one for each control. A choice for a region has only its
    id. JSON-MIN has no ids: results with the same shape belong to one region, and if a control has several of them, its
    first result belongs to the first of several equal regions, its second to the second, and so on.
    """
    regions: dict[tuple[str, str, int], _Region] = {}
    labels_by_id: dict[str, dict[str, list[Any]]] = {}  # of results without a shape
    same_shape: Counter[tuple[str, str]] = Counter()
    size = _size_of(results)
    for result in results:
        value, identity, control = result.get("value") or {}, str(result.get("id")), str(result.get("from_name"))
        labels = _labels_of(value, control)
        if not _is_shape(value) and not _has_unknown_shape(value, identity, results):
            labels_by_id.setdefault(identity, {}).update(labels)
            continue
        box_xyxy = _box_of(value, _size_of([result]) or size)
        shape, number = repr(box_xyxy), 0
        if identity == "None":
            number = same_shape[shape, control]
            same_shape[shape, control] += 1
        region = regions.setdefault((identity, shape, number), _Region(box_xyxy, _is_ignored(result)))
        region.labels.update(labels)
    for (identity, *_), region in regions.items():
        if identity != "None":
            region.labels = labels_by_id.get(identity, {}) | region.labels
    return list(regions.values())


def _labels_of(value: dict[str, Any], control: str) -> dict[str, list[Any]]:
    """{control: the labels or choices in a result's value}; {} if there are none."""
    lists = [entry for key, entry in value.items() if _is_label_key(key) and isinstance(entry, list)]
    return {control: lists[-1]} if lists else {}


def _is_ignored(result: Result) -> bool:
    meta = result.get("meta")
    return isinstance(meta, dict) and meta.get("text") in ("ignore", ["ignore"])


def _is_label_key(key: str) -> bool:
    return key.endswith("labels") or key == "choices"


def _is_shape(value: dict[str, Any]) -> bool:
    """Whether a result's value is a shape of a known kind, rather than labels alone."""
    return any(key in value for key in ("points", "radiusX", "x", "rle"))


def _has_unknown_shape(value: dict[str, Any], identity: str, results: list[Result]) -> bool:
    """Whether a value with labels is a region of an unknown kind: no result with the same id has a shape."""
    is_labeled = any(key.endswith("labels") for key in value)
    same_id = [result for result in results if str(result.get("id")) == identity]
    return is_labeled and not any(_is_shape(result.get("value") or {}) for result in same_id)


def _box_of(value: dict[str, Any], size: tuple[int, int] | None) -> list[Any]:
    """The box of a shape in fractions of the image; empty if it has none. Label Studio writes percent."""
    x, y, width, height, degrees = (value.get(key, 0) for key in ("x", "y", "width", "height", "rotation"))
    width_px, height_px = size or (1, 1)
    if "points" in value:
        box = box_of_points(value["points"] if isinstance(value["points"], list) else [value["points"]])
        return _scaled(box, 1, 1)
    if "radiusX" in value:
        cx, cy, rx, ry = _scaled([x, y, value["radiusX"], value.get("radiusY")], width_px, height_px)
        return _scaled(box_of_ellipse(cx, cy, rx, ry, degrees), 100 / width_px, 100 / height_px)
    if "x" in value and "height" in value:
        if not are_numbers([x, y, width, height], 4):
            return [x, y, width, height]
        # Rotated about the top left corner, in pixels: one percent is a different length in width and height.
        corners = _scaled([x, y, x + width, y + height], width_px, height_px)
        return _scaled(box_of_rotated(corners, degrees, corners[:2]), 100 / width_px, 100 / height_px)
    return []


def _scaled(values: list[Any], width: float, height: float) -> list[Any]:
    """[x0, y0, x1, y1] in percent → in the unit of the given width and height. Other values are returned as they are."""
    if not are_numbers(values, 4):
        return values
    return [value * side / 100 for value, side in zip(values, (width, height) * 2, strict=True)]
