"""Predictions in the formats of other tools: COCO's results list, YOLO's text files, roboflow's supervision, Label Studio's
tasks (label_studio_export.py) and FiftyOne's JSON (fiftyone_export.py).

Images and classes have the same numbers, and YOLO's files the same names, as in `python -m data_prep export` of the prepared
dataset. Boxes whose label is not one of its classes have no class number; they are left out and counted.
"""

import csv
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from boxtune.answers.predictions import Prediction
from boxtune.common.errors import UserError
from boxtune.common.files import is_file_name, replace_folder, write_whole
from boxtune.common.problems import join_names
from boxtune.data.boxes import box_xyxy_to_cxcywh, box_xyxy_to_xywh
from boxtune.data.dataset import SPLIT_FOLDERS
from boxtune.data.questions import answer_category
from boxtune.data.records import Record, flat_name, with_absolute_image
from boxtune.reports.export_rows import Rows
from boxtune.reports.fiftyone_export import write_fiftyone
from boxtune.reports.label_studio_export import write_label_studio

# The columns that supervision's CSVSink writes (tracker_id stays empty), and after them two more.
_COLUMNS = ("x_min", "y_min", "x_max", "y_max", "class_id", "confidence", "tracker_id", "class_name", "image")


def wanted_exports(text: str) -> list[str]:
    """ "coco,yolo" → ["coco", "yolo"]. Raises UserError for an unknown format and for an empty list."""
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    if not wanted or not all(word in EXPORTS for word in wanted):
        raise UserError(f"--export {text}: choose from {', '.join(EXPORTS)} (comma-separated).")
    return list(dict.fromkeys(wanted))


def check_exports(wanted: list[str], out: Path, click: bool, records: list[Record]) -> None:
    """Check, before anything is generated, that the `wanted` formats can be written to `out`.

    Raises UserError if the predictions are points, if the YOLO folder would replace something that is not an earlier export, or
    if ids of `records` are too long for file names.
    """
    if click:
        raise UserError("--export: the predictions are points, so there are no boxes to export. Leave out --export.")
    if "yolo" in wanted:
        _check_yolo_folder(out / "yolo")
        too_long = [record["id"] for record in records if not is_file_name(_yolo_name(record["id"]))]
        if too_long:
            raise UserError(
                "--export: the YOLO file names of these ids would be longer than 255 bytes. Shorten the ids, or leave out yolo:",
                too_long,
            )


def _check_yolo_folder(folder: Path) -> None:
    """Raises UserError if `folder` exists and is not an earlier export."""
    remedy = "Use another --out."
    if folder.is_symlink() or folder.is_file():
        raise UserError(f"--export: {folder} is not a folder, so it is not an earlier export. {remedy}")
    foreign = {path.name for path in folder.glob("*")} - {"labels", "classes.txt"}
    if foreign:
        raise UserError(f"--export: {folder} contains {min(foreign)!r}, so it is not an earlier export. {remedy}")
    files = [path for path in (folder / "labels").rglob("*") if not path.is_dir()]
    foreign_files = [path for path in files if not _is_yolo_prediction(path)]
    if foreign_files:
        raise UserError(f"--export: {min(foreign_files)} is not part of an earlier export and would be lost. {remedy}")


def _is_yolo_prediction(path: Path) -> bool:
    """Whether a file may come from an earlier export. Its lines have a sixth column, the score, unlike annotations."""
    if path.suffix != ".txt":
        return False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return all(len(line.split()) == 6 for line in lines)


def export_predictions(
    wanted: list[str],
    out: Path,
    records: list[Record],
    predictions: list[Prediction],
    classes: list[str],
    split: str | None,
    data_dir: Path,
) -> list[str]:
    """Write `predictions[i]`, which belongs to `records[i]`, to `out` in the `wanted` formats. Returns messages for the user.

    `classes` are those of the prepared dataset, in its order. `split` is None for images without ground truth. `data_dir` is the
    folder that images of records are relative to.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [_rows(prediction["objects"], numbers) for prediction in predictions]
    exported = sum(len(objects) for objects in rows)
    located = [with_absolute_image(record, data_dir) for record in records]
    messages = []
    for name in wanted:
        path = EXPORTS[name](out, located if name in _NAMES_FILES else records, rows, classes, split)
        messages.append(f"{path}: {exported} boxes")
    messages += _unknown_label_warnings(predictions, classes, exported)
    if "coco" in wanted:
        messages += _no_detection_warnings(exported) + _narrow_question_warnings(records)
    return messages


def _rows(objects: dict[str, list[Any]], numbers: dict[str, int]) -> Rows:
    columns = zip(objects["bbox"], objects["category"], objects["score"], strict=True)
    return [(box, numbers[label.strip()], score) for box, label, score in columns if label.strip() in numbers]


def _unknown_label_warnings(predictions: list[Prediction], classes: list[str], exported: int) -> list[str]:
    labels = [label.strip() for prediction in predictions for label in prediction["objects"]["category"]]
    if exported == len(labels):
        return []
    unknown = sorted({*labels} - {*classes})
    shown = join_names(f"{name!r:.60}" for name in unknown)
    left_out = len(labels) - exported
    return [f"warning: {left_out} boxes are left out of the export because their labels are not classes: {shown}"]


def _no_detection_warnings(exported: int) -> list[str]:
    if exported:
        return []
    return [
        "warning: coco_results.json holds no detections. pycocotools' loadRes raises an IndexError on the empty list; "
        "metrics.json has the scores"
    ]


def _narrow_question_warnings(records: list[Record]) -> list[str]:
    """COCO's files cannot express that a question asks for one class only."""
    narrow = sum(answer_category(record["messages"][1]["content"]) != (True, None) for record in records)
    if not narrow:
        return []
    return [
        f"warning: {narrow} questions ask for part of the classes. evaluate.py scores only the objects that they ask for; "
        "other tools will count the other objects as missed."
    ]


def write_coco(out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None) -> Path:
    """coco_results.json, for `loadRes` of pycocotools with annotations/instances_SPLIT.json of `data_prep export`."""
    results = [
        {"image_id": image_id, "category_id": number + 1, "bbox": box_xyxy_to_xywh(box)[0].tolist(), "score": score}
        for image_id, objects in enumerate(rows, 1)
        for box, number, score in objects
    ]
    write_whole(out / "coco_results.json", json.dumps(results) + "\n")
    return out / "coco_results.json"


def write_yolo(out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None) -> Path:
    """yolo/classes.txt and yolo/labels/SPLIT/ID.txt.

    Lines are `class cx cy width height confidence`, with coordinates as fractions of the image. An earlier export is replaced
    as a whole.
    """
    labels = Path("labels", SPLIT_FOLDERS[split]) if split else Path("labels")
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".yolo.", dir=out))
    try:
        (temporary / labels).mkdir(parents=True)
        for record, objects in zip(records, rows, strict=True):
            text = _yolo_lines(objects, record["width"], record["height"])
            (temporary / labels / _yolo_name(record["id"])).write_text(text, encoding="utf-8")
        (temporary / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        temporary.chmod(0o755)
        replace_folder(temporary, out / "yolo")  # check_exports has made sure that it is an earlier export
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out / "yolo" / labels


def _yolo_name(record_id: str) -> str:
    return f"{flat_name(record_id)}.txt"


def _yolo_lines(objects: Rows, width: int, height: int) -> str:
    boxes_cxcywh = box_xyxy_to_cxcywh([box for box, _, _ in objects]) / [width, height, width, height]
    lines = []
    for box, (_, number, score) in zip(boxes_cxcywh, objects, strict=True):
        coordinates = " ".join(f"{value:.9f}" for value in box)
        lines.append(f"{number} {coordinates} {score:.6f}\n")
    return "".join(lines)


def write_supervision(
    out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None
) -> Path:
    """supervision.json with the arrays of sv.Detections for each image, and supervision.csv with one row per box."""
    images = []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for record, objects in zip(records, rows, strict=True):
        images.append(
            {
                "id": record["id"],
                "image": record["image"],
                "xyxy": [box for box, _, _ in objects],
                "confidence": [score for _, _, score in objects],
                "class_id": [number for _, number, _ in objects],
                "class_name": [classes[number] for _, number, _ in objects],
            }
        )
        writer.writerows([*box, number, score, "", classes[number], record["id"]] for box, number, score in objects)
    write_whole(out / "supervision.csv", table.getvalue())
    write_whole(out / "supervision.json", json.dumps({"images": images}, ensure_ascii=False) + "\n")
    return out / "supervision.json"


EXPORTS = {
    "coco": write_coco,
    "yolo": write_yolo,
    "supervision": write_supervision,
    "labelstudio": write_label_studio,
    "fiftyone": write_fiftyone,
}
_NAMES_FILES = ("labelstudio", "fiftyone")  # these tools open the images that an export names
