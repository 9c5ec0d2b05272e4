"""Label Studio: its JSON or JSON-MIN export.

Rectangles count as they are, turned rectangles, polygons and ellipses by the box around them;
key points and brush strokes are left out and listed. Of several annotations of a task the first
that was not cancelled counts; a task without one is left out. Where a region has labels of
several controls, --label-field names the control (`from_name`) that gives the class.
"""

import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from data_prep.reading.files import ImageFinder, annotation_files, image_finder_for, image_name, read_json, stated_size
from data_prep.reading.names import without_suffix
from data_prep.reading.shapes import are_numbers, box_of_ellipse, box_of_points, box_of_turned
from data_prep.reading.source import Item, Options, Row, Sample, Source, problem
from data_prep.reading.spool import Spool

_IMAGE_FIELDS = ("image", "img", "picture", "photo", "url", "ocr")
_IMAGE_ENDING = re.compile(r"\.(jpe?g|png|bmp|gif|tiff?|webp)\b", re.IGNORECASE)


def recognise(sample: Sample) -> str | None:
    for path, value in sample.documents:
        for task in value if isinstance(value, list) else []:
            if isinstance(task, dict) and isinstance(task.get("data"), dict) and "annotations" in task:
                return f"{path} has tasks with data and annotations"
            if isinstance(task, dict) and "annotation_id" in task:
                return f"{path} has tasks with annotation_id"
    return None


def read(source: Path, options: Options) -> Source:
    files, warnings = annotation_files(source, ["*.json"], options)
    found = Source(Spool(options.scratch), layout="xyxy", fractions=True, warnings=warnings)
    controls: set[str] = set()
    for file, split in files:
        tasks = read_json(file)
        if not isinstance(tasks, list):
            found.errors.append(f"{file}: Label Studio's export is a list of tasks, got {type(tasks).__name__}")
            continue
        pictures, done = image_finder_for(file, source, options), set()
        for number, task in enumerate(tasks):
            where = f"{file}: task {task.get('id', number) if isinstance(task, dict) else number}"
            address = _image_address(task, options.image_field)
            if fault := _fault(task) or (
                None if address else "names no picture; its field may be named by --image-field"
            ):
                found.errors.append(f"{where} {fault}, got {task!r:.100}")
                continue
            picture = _find_image(address, pictures)
            name = image_name(_path_of(address), picture, file, source)
            if "annotations" not in task and str(task.get("id")) in done:  # JSON-MIN has an entry for each annotator
                found.problems.append(problem(without_suffix(name), "annotations", task["id"], "the first one taken"))
                continue
            done |= {str(task["id"])} if task.get("id") is not None else set()
            results = _results_of(task, name, found)
            if results is not None:
                controls |= {str(result.get("from_name")) for result in results}
                item = Item(name, str(picture), [], split, _size_of(results))
                _read_regions(results, where, item, options, found)
                found.items.append(item)
    if options.label_field and options.label_field not in controls:
        known = ", ".join(sorted(controls)) or "none"
        found.errors.append(
            f"--label-field {options.label_field}: there is no control of that name; there are: {known}"
        )
    return found


def _fault(task) -> str | None:
    """What keeps a task from being read, or None."""
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
            return "has a result whose value is no object"
    return None


def _are_objects(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)


# ---- pictures --------------------------------------------------------------------------------------------------------


def _image_address(task, image_field: str | None) -> str | None:
    """The address of the task's picture: in the field that is named, or of a usual name, or the only text that looks so."""
    data = task.get("data", task) if isinstance(task, dict) else {}
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    if image_field:
        return texts.get(image_field)
    usual = [texts[key] for key in _IMAGE_FIELDS if texts.get(key)]
    alike = [value for value in texts.values() if _IMAGE_ENDING.search(value)]
    return usual[0] if usual else alike[0] if len(alike) == 1 else None


def _path_of(address: str) -> str:
    """The path in "/data/local-files/?d=a/b.jpg", "s3://bucket/a/b.jpg" or "/data/upload/1/a.jpg"."""
    try:
        # Only a web address has fragments; in others # is a letter of the name.
        parts = urlsplit(address, allow_fragments=address.startswith("http"))
    except ValueError:  # brackets that are no IPv6 host
        return address
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path).lstrip("/") or address


def _find_image(address: str, pictures: ImageFinder) -> Path:
    """The picture by its address as it stands, by its path or any ending of that, or without the eight digits that an upload
    puts before the name."""
    path = _path_of(address)
    bare = re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(path).name)
    candidates = (
        pictures.find(name) for name in (address, f"/{path}", bare)
    )  # of an absolute path the endings are tried
    return next((picture for picture in candidates if os.path.isfile(picture)), pictures.find(path))


# ---- regions ---------------------------------------------------------------------------------------------------------


def _results_of(task: dict, name: str, found: Source) -> list[dict] | None:
    """The results of the annotation that counts; None where the task has none."""
    if "annotations" not in task and "completions" not in task:  # JSON-MIN: {control: [value, …]}
        controls = {key: values for key, values in task.items() if isinstance(values, list)}
        return [
            {"from_name": key, "value": value, **value}
            for key, values in controls.items()
            for value in values
            if isinstance(value, dict)
        ]
    annotations = task.get("annotations", task.get("completions")) or []
    counting = [entry for entry in annotations if not entry.get("was_cancelled") and not entry.get("skipped")]
    if not counting:
        found.problems.append(problem(without_suffix(name), "no_annotation", len(annotations), "image left out"))
        return None
    if len(counting) > 1:
        found.problems.append(problem(without_suffix(name), "annotations", len(counting), "the first one taken"))
    return counting[0].get("result") or []


def _size_of(results: list[dict]) -> tuple[int, int] | None:
    sizes = (stated_size(result.get("original_width"), result.get("original_height")) for result in results)
    return next((size for size in sizes if size), None)


def _read_regions(results: list[dict], where: str, item: Item, options: Options, found: Source) -> None:
    """A row of the item for each region. One region may have several results of the same id and shape, one for each control;
    a choice made for a region has its id alone. In JSON-MIN, which has no ids, the shape alone tells regions apart, and of
    those that are alike the first result of every control is of one region, the second of another."""
    regions: dict[tuple, tuple[list, dict[str, list]]] = {}
    loose: dict[str, dict[str, list]] = {}
    size, alike = _size_of(results), Counter()
    for result in results:
        value, identity = result.get("value") or {}, str(result.get("id"))
        labels = {
            str(result.get("from_name")): entry
            for key, entry in value.items()
            if (key.endswith("labels") or key == "choices") and isinstance(entry, list)
        }
        box_xyxy = _box_of(value, _size_of([result]) or size)
        if box_xyxy is None and any(key.endswith("labels") for key in value) and not _elsewhere(identity, results):
            box_xyxy = []  # of a kind of region that is not known here
        if box_xyxy is None:
            loose.setdefault(identity, {}).update(labels)
        else:
            shape, control = repr(box_xyxy), str(result.get("from_name"))
            turn = alike[shape, control] if identity == "None" else 0
            alike[shape, control] += identity == "None"
            regions.setdefault((identity, shape, turn), (box_xyxy, {}))[1].update(labels)
    for (identity, *_), (box_xyxy, own) in regions.items():
        given = loose.get(identity, {}) | own if identity != "None" else own
        labels = [given.get(options.label_field, [])] if options.label_field else list(given.values())
        if not box_xyxy:
            item.no_box.append({"labels": given})
        elif len(labels) > 1:
            found.errors.append(f"{where}: a region has labels of {', '.join(given)}; choose with --label-field")
        elif labels and len(labels[0]) > 1:
            found.errors.append(f"{where}: a region has {len(labels[0])} labels: {labels[0]!r:.100}; give it one")
        else:
            item.rows.append(Row(box_xyxy, str(labels[0][0]).strip() if labels and labels[0] else ""))


def _elsewhere(identity: str, results: list[dict]) -> bool:
    """Whether another result of this id says where the region lies."""
    return any(
        str(result.get("id")) == identity and _box_of(result.get("value") or {}, None) is not None for result in results
    )


def _box_of(value: dict, size: tuple[int, int] | None) -> list | None:
    """The box of a region in fractions; an empty list for those that enclose nothing, None for what is no region."""
    x, y, width, height, degrees = (value.get(key, 0) for key in ("x", "y", "width", "height", "rotation"))
    width_px, height_px = size or (1, 1)
    if "points" in value:
        box = box_of_points(value["points"] if isinstance(value["points"], list) else [value["points"]])
        return _scaled(box, 1, 1)
    if "radiusX" in value:
        radii = _scaled([x, y, value["radiusX"], value.get("radiusY")], width_px, height_px)
        return _scaled(box_of_ellipse(*radii, degrees), 100 / width_px, 100 / height_px)
    if "x" in value and "height" in value:
        if not are_numbers([x, y, width, height], 4):
            return [x, y, width, height]
        # Turned about the top left corner, in pixels: a percent of the width is another length than one of the height.
        corners = _scaled([x, y, x + width, y + height], width_px, height_px)
        return _scaled(box_of_turned(corners, degrees, corners[:2]), 100 / width_px, 100 / height_px)
    return [] if "x" in value or "rle" in value else None


def _scaled(values: list, across: float, down: float) -> list:
    """Percent → hundredths of the given sides; what is no four numbers stays as it is."""
    if not are_numbers(values, 4):
        return values
    return [value * side / 100 for value, side in zip(values, (across, down) * 2, strict=True)]
