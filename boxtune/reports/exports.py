"""Predictions in the forms that other tools read: COCO's results list, YOLO's text files, roboflow's supervision.

ImageFinder and classes are numbered, and YOLO's files named, as `python -m data_prep export` does for the prepared data set.
Boxes of a label that is none of its classes have no number: they are left out, and counted.
"""

import csv
import io
import json
import shutil
import tempfile
from pathlib import Path

from boxtune.answers.predictions import Prediction
from boxtune.common.errors import UserError
from boxtune.common.files import is_file_name, replace_folder, write_whole
from boxtune.data.boxes import box_xyxy_to_cxcywh, box_xyxy_to_xywh
from boxtune.data.questions import answer_category
from boxtune.data.records import SPLIT_FOLDERS, Record, flat_name

# (box_xyxy, number of its class from 0, score) of one picture's objects.
Rows = list[tuple[list[float], int, float]]

# What CSVSink of supervision writes, which tracks nothing here; behind it two columns of ours.
_COLUMNS = ("x_min", "y_min", "x_max", "y_max", "class_id", "confidence", "tracker_id", "class_name", "image")


def wanted_exports(text: str) -> list[str]:
    """ "coco,yolo" → ["coco", "yolo"]. Raises UserError that names every unknown word."""
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in EXPORTS]
    if unknown or not wanted:
        raise UserError(f"--export {text}: choose from {', '.join(EXPORTS)}, by commas.")
    return list(dict.fromkeys(wanted))


def check_exports(wanted: list[str], out: Path, click: bool, records: list[Record]) -> None:
    """Raises UserError where answers are points, where a folder to be written is not one of ours, or where ids of `records`
    are too long for names of files."""
    if click:
        raise UserError("--export: the answers are points, so there are no boxes to export. Leave out --export.")
    if "yolo" not in wanted:
        return
    yolo = out / "yolo"
    if yolo.is_symlink() or yolo.is_file():
        raise UserError(f"--export: {yolo} is no folder, so it is no earlier export. Use another --out.")
    foreign = {path.name for path in yolo.glob("*")} - {"labels", "classes.txt"}
    if foreign:
        raise UserError(f"--export: {yolo} holds {min(foreign)!r}, so it is no earlier export. Use another --out.")
    strange = [path for path in (yolo / "labels").rglob("*") if not path.is_dir() and not _is_yolo_export(path)]
    if strange:
        raise UserError(f"--export: {min(strange)} is of no earlier export, and would be lost. Use another --out.")
    too_long = [record["id"] for record in records if not is_file_name(_yolo_name(record["id"]))]
    if too_long:
        raise UserError("--export: yolo's files of these ids would have names of more than 255 bytes:", too_long)


def export_predictions(
    wanted: list[str],
    out: Path,
    records: list[Record],
    predictions: list[Prediction],
    classes: list[str],
    split: str | None,
) -> list[str]:
    """Write the `wanted` forms of `predictions[i]`, which answers `records[i]`, into `out`; returns what to tell the user.

    `classes` are those of the prepared data set, in its order. `split` is None for pictures without truth.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    rows = [_rows(prediction["objects"], numbers) for prediction in predictions]
    exported, found = sum(map(len, rows)), sum(len(p["objects"]["category"]) for p in predictions)
    lines = [f"{EXPORTS[kind](out, records, rows, classes, split)}: {exported} boxes" for kind in wanted]
    if exported < found:
        unknown = {label.strip() for p in predictions for label in p["objects"]["category"]} - {*classes}
        lines.append(
            f"warning: {found - exported} boxes are left out of the export; their labels are no classes: {_some(unknown)}"
        )
    narrowed = sum(answer_category(record["messages"][1]["content"]) != (True, None) for record in records)
    if "coco" in wanted and narrowed:
        lines.append(
            f"warning: {narrowed} questions ask for part of the classes. evaluate.py scores the objects that they ask for; "
            "other tools will count the rest as missed."
        )
    return lines


def _rows(objects: dict, numbers: dict[str, int]) -> Rows:
    columns = zip(*(objects[key] for key in ("bbox", "category", "score")), strict=True)
    return [(box, numbers[label.strip()], score) for box, label, score in columns if label.strip() in numbers]


def _some(names: set[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(f"{name!r:.60}" for name in shown) + (" …" if len(names) > len(shown) else "")


def write_coco(out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None) -> Path:
    """coco_results.json, for `loadRes` of pycocotools on annotations/instances_SPLIT.json of `data_prep export`."""
    results = [
        {"image_id": image_id, "category_id": number + 1, "bbox": box_xyxy_to_xywh(box)[0].tolist(), "score": score}
        for image_id, objects in enumerate(rows, 1)
        for box, number, score in objects
    ]
    write_whole(out / "coco_results.json", json.dumps(results) + "\n")
    return out / "coco_results.json"


def _is_yolo_export(path: Path) -> bool:
    """Whether a file may be one of ours: a sixth column, the score, is what annotations lack."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.suffix == ".txt" else [""]
    return all(len(line.split()) == 6 for line in lines)


def _yolo_name(record_id: str) -> str:
    return f"{flat_name(record_id)}.txt"


def write_yolo(out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None) -> Path:
    """yolo/labels/SPLIT/ID.txt, `class cx cy width height confidence` in shares of the picture, and yolo/classes.txt."""
    place = Path("labels", SPLIT_FOLDERS[split]) if split else Path("labels")
    out.mkdir(parents=True, exist_ok=True)
    whole = Path(tempfile.mkdtemp(prefix=".yolo.", dir=out))
    try:
        (whole / place).mkdir(parents=True)
        for record, objects in zip(records, rows, strict=True):
            boxes_cxcywh = box_xyxy_to_cxcywh([box for box, *_ in objects]) / ([record["width"], record["height"]] * 2)
            lines = [
                f"{number} " + " ".join(f"{value:.9f}" for value in box) + f" {score:.6f}\n"
                for box, (_, number, score) in zip(boxes_cxcywh, objects, strict=True)
            ]
            (whole / place / _yolo_name(record["id"])).write_text("".join(lines), encoding="utf-8")
        (whole / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        whole.chmod(0o755)
        replace_folder(whole, out / "yolo")  # what is there is an earlier export, as check_exports has seen
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return out / "yolo" / place


def write_supervision(
    out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None
) -> Path:
    """supervision.json, the arrays of sv.Detections for every picture, and supervision.csv, a row a box as sv.CSVSink has."""
    images, table = [], io.StringIO()
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


EXPORTS = {"coco": write_coco, "yolo": write_yolo, "supervision": write_supervision}
