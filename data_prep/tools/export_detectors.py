"""Exports for ordinary detectors: COCO and YOLO."""

import json
from typing import Any

import yaml

from boxtune.data.boxes import box_area, box_xyxy_to_cxcywh, box_xyxy_to_xywh
from boxtune.data.dataset import SPLIT_FOLDERS
from boxtune.data.records import Record, stated_areas
from data_prep.tools.export_job import ExportJob, place_images

# The image files that YOLO tools list (IMG_FORMATS in ultralytics/data/utils.py), as far as boxtune reads them.
_YOLO_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}


def write_coco(job: ExportJob) -> str:
    """annotations/instances_SPLIT.json, with ids from 1; ignored objects are iscrowd."""
    (job.staged / "annotations").mkdir()
    categories = [{"id": number, "name": name} for number, name in enumerate(job.classes, 1)]
    for split, records in job.splits.items():
        names = place_images(job, split)
        images = [
            {"id": number, "file_name": name, "width": record["width"], "height": record["height"]}
            for number, (record, name) in enumerate(zip(records, names, strict=True), 1)
        ]
        data = {
            "images": images,
            "annotations": coco_annotations(records, job.classes),
            "categories": categories,
        }
        target = job.staged / "annotations" / f"instances_{SPLIT_FOLDERS[split]}.json"
        target.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
    return "The images are in images/SPLIT."


def coco_annotations(records: list[Record], classes: list[str]) -> list[dict[str, Any]]:
    """The list `annotations` of COCO. Nothing is rounded, and `area` is that of the source where it states one: pycocotools
    then sees exactly the boxes and sizes that evaluate.py scores."""
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, 1):
        objects = record["objects"]
        boxes_xywh, box_areas = box_xyxy_to_xywh(objects["bbox"]).tolist(), box_area(objects["bbox"]).tolist()
        stated = stated_areas(objects)
        areas = [own if area is None else area for own, area in zip(box_areas, stated, strict=True)]
        for box, area, label, ignore in zip(boxes_xywh, areas, objects["category"], objects["ignore"], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": classes.index(label) + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(ignore),
                }
            )
    return annotations


def write_yolo(job: ExportJob) -> str:
    """data.yaml, images/SPLIT and labels/SPLIT. YOLO cannot mark ignored objects, so they are left out and counted."""
    ignored = 0
    for split, records in job.splits.items():
        names = place_images(job, split, _YOLO_SUFFIXES)
        folder = job.staged / "labels" / SPLIT_FOLDERS[split]
        folder.mkdir(parents=True, exist_ok=True)
        for record, name in zip(records, names, strict=True):
            ignored += sum(record["objects"]["ignore"])
            (folder / name).with_suffix(".txt").write_text(_yolo_lines(record, job.classes), encoding="utf-8")
    settings = _yolo_settings(job)
    text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
    (job.staged / "data.yaml").write_text(text, encoding="utf-8")
    return _yolo_advice(job, settings["val"], ignored)


def _yolo_lines(record: Record, classes: list[str]) -> str:
    """One line per object that is not ignored: class number, center and size in fractions of the image."""
    objects = record["objects"]
    boxes_cxcywh = box_xyxy_to_cxcywh(objects["bbox"]) / ([record["width"], record["height"]] * 2)
    lines = []
    for box, label, ignore in zip(boxes_cxcywh, objects["category"], objects["ignore"], strict=True):
        if not ignore:
            lines.append(f"{classes.index(label)} {' '.join(f'{value:.9f}' for value in box)}\n")
    return "".join(lines)


def _yolo_settings(job: ExportJob) -> dict[str, Any]:
    """The content of data.yaml. YOLO tools require train and val, so another split stands in for a missing one."""
    folders = {SPLIT_FOLDERS[split]: f"images/{SPLIT_FOLDERS[split]}" for split in job.splits}
    for required, substitutes in {"val": ("test", "train"), "train": ("val",)}.items():
        if required not in folders:
            folders[required] = next(folders[name] for name in substitutes if name in folders)
    return {"path": str(job.out.absolute()), **folders, "names": dict(enumerate(job.classes))}


def _yolo_advice(job: ExportJob, val_folder: str, ignored: int) -> str:
    if "train" in job.splits:
        advice = "Train with its data.yaml."
    else:
        advice = "There is no training split, so use its data.yaml for testing only."
    if "validation" not in job.splits:
        advice += f" There is no validation split, so val is {val_folder}."
    if ignored:
        advice += f" {ignored} ignored object(s) are left out, because YOLO cannot mark them."
    return advice
