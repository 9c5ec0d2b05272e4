"""Label Studio: its JSON or JSON-MIN export.

Rectangles count as they are, turned rectangles, polygons and ellipses by the box around them; key points and brush strokes
are left out and listed. Of several annotations of a task the first that was not cancelled counts; a task without one is left
out. Where a region has labels of several controls, --label-field names the control (`from_name`) that gives the class.
"""

import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from data_prep.files import Pictures, annotation_files, picture_folders, picture_name, read_json, stated_size
from data_prep.shapes import are_numbers, box_of_ellipse, box_of_points, box_of_turned
from data_prep.source import Item, Options, Row, Sample, Source, problem
from data_prep.splits import without_suffix

_PICTURE_FIELDS = ("image", "img", "picture", "photo", "url", "ocr")
_PICTURE_ENDING = re.compile(r"\.(jpe?g|png|bmp|gif|tiff?|webp)\b", re.IGNORECASE)


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
    found = Source(layout="xyxy", fractions=True, warnings=warnings)
    for file, split in files:
        tasks = read_json(file)
        if not isinstance(tasks, list):
            found.errors.append(f"{file}: Label Studio's export is a list of tasks, got {type(tasks).__name__}")
            continue
        pictures = Pictures(picture_folders(file, source, options))
        for number, task in enumerate(tasks):
            where = f"{file}: task {task.get('id', number) if isinstance(task, dict) else number}"
            address = _picture_address(task)
            if address is None:
                found.errors.append(f"{where} names no picture, got {task!r:.100}")
                continue
            picture = _find_picture(_path_of(address), pictures)
            name = picture_name(_path_of(address), picture, file, source)
            results = _results_of(task, name, found)
            if results is not None:
                rows = _read_regions(results, where, name, options, found)
                found.items.append(Item(name, picture, rows, split, _size_of(results)))
    return found


# ---- pictures --------------------------------------------------------------------------------------------------------


def _picture_address(task) -> str | None:
    """The address of the task's picture: the field of a usual name, else the only text that looks like one."""
    data = task.get("data", task) if isinstance(task, dict) else {}
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    usual = [texts[key] for key in _PICTURE_FIELDS if texts.get(key)]
    alike = [value for value in texts.values() if _PICTURE_ENDING.search(value)]
    return usual[0] if usual else alike[0] if len(alike) == 1 else None


def _path_of(address: str) -> str:
    """The path in "/data/local-files/?d=a/b.jpg", "s3://bucket/a/b.jpg" or "/data/upload/1/a.jpg"."""
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that are no IPv6 host
        return address
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path).lstrip("/") or address


def _find_picture(path: str, pictures: Pictures) -> Path:
    """The picture by its path, by any ending of it, or without the eight digits that an upload puts before the name."""
    bare = re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(path).name)
    candidates = (pictures.find(name) for name in (f"/{path}", bare))  # of an absolute path the endings are tried
    return next((picture for picture in candidates if os.path.isfile(picture)), pictures.find(path))


# ---- regions ---------------------------------------------------------------------------------------------------------


def _results_of(task: dict, name: str, found: Source) -> list[dict] | None:
    """The results of the annotation that counts; None where the task has none."""
    if "annotations" not in task and "completions" not in task:  # JSON-MIN: {control: [value, …]}
        controls = {key: values for key, values in task.items() if isinstance(values, list)}
        return [
            {"from_name": key, "id": f"{key} {number}", "value": value, **value}
            for key, values in controls.items()
            for number, value in enumerate(values)
            if isinstance(value, dict)
        ]
    annotations = task.get("annotations", task.get("completions")) or []
    counting = [entry for entry in annotations if isinstance(entry, dict) and not entry.get("was_cancelled")]
    if not counting:
        found.problems.append(problem(without_suffix(name), "no_annotation", len(annotations), "image left out"))
        return None
    if len(counting) > 1:
        found.problems.append(problem(without_suffix(name), "annotations", len(counting), "the first one taken"))
    return [entry for entry in counting[0].get("result") or [] if isinstance(entry, dict)]


def _size_of(results: list[dict]) -> tuple[int, int] | None:
    sizes = (stated_size(result.get("original_width"), result.get("original_height")) for result in results)
    return next((size for size in sizes if size), None)


def _read_regions(results: list[dict], where: str, name: str, options: Options, found: Source) -> list[Row]:
    """A row for each region. Its label may stand in its own result, or in another of the same id."""
    labels: dict[object, dict[str, str]] = {}
    for number, result in enumerate(results):
        for key, value in (result.get("value") or {}).items():
            if (key.endswith("labels") or key == "choices") and isinstance(value, list):
                own = labels.setdefault(result.get("id", number), {})
                own[str(result.get("from_name"))] = ", ".join(map(str, value)).strip()
    rows, done = [], set()
    for number, result in enumerate(results):
        region = result.get("id", number)
        box_xyxy = _box_of(result.get("value") or {}, _size_of([result]))
        if box_xyxy is None or region in done:
            continue
        done.add(region)
        own = labels.get(region, {})
        if not box_xyxy:
            value = {"type": result.get("type"), "labels": own}
            found.problems.append(problem(without_suffix(name), "no_box", value, "object dropped"))
        elif len(own) > 1 and not options.label_field:
            found.errors.append(f"{where}: a region has labels of {', '.join(own)}; choose with --label-field")
        else:
            category = own.get(options.label_field, "") if options.label_field else next(iter(own.values()), "")
            rows.append(Row(box_xyxy, category))
    return rows


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
