"""Predictions and ground truth as the JSON of a FiftyOne dataset: fo.Dataset.from_json("fiftyone.json")."""

import json
from pathlib import Path
from typing import Any

from boxtune.common.files import write_whole
from boxtune.data.records import Record
from boxtune.reports.export_rows import Rows

_DETECTIONS = "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Detections)"


def write_fiftyone(out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None) -> Path:
    """fiftyone.json: samples with the fields `predictions`, `record_id` and, if there is a split, `ground_truth`.

    Images of records are absolute paths. Boxes are [left, top, width, height] in fractions of the image. Ignored ground truth
    has `iscrowd` 1, the attribute that FiftyOne's COCO evaluation reads.
    """
    fields = {"record_id": "fiftyone.core.fields.StringField", "predictions": _DETECTIONS}
    samples = []
    for record, objects in zip(records, rows, strict=True):
        predictions = [_detection(record, classes[number], box, confidence=score) for box, number, score in objects]
        sample: dict[str, Any] = {
            "filepath": record["image"],
            "tags": [split] if split else [],
            "record_id": record["id"],
            "predictions": {"_cls": "Detections", "detections": predictions},
        }
        if split:
            sample["ground_truth"] = {"_cls": "Detections", "detections": _ground_truth(record)}
        samples.append(sample)
    dataset = {
        "name": f"boxtune-{split}" if split else "boxtune",
        "media_type": "image",
        "sample_fields": fields | ({"ground_truth": _DETECTIONS} if split else {}),
        "info": {},
        "default_classes": classes,
        "samples": samples,
    }
    write_whole(out / "fiftyone.json", json.dumps(dataset, ensure_ascii=False) + "\n")
    return out / "fiftyone.json"


def _ground_truth(record: Record) -> list[dict[str, Any]]:
    objects = record["objects"]
    rows = zip(objects["category"], objects["bbox"], objects["ignore"], strict=True)
    return [_detection(record, label, box, iscrowd=int(ignore)) for label, box, ignore in rows]


def _detection(record: Record, label: str, box_xyxy: list[float], **attributes: float) -> dict[str, Any]:
    x0, y0, x1, y1 = box_xyxy
    width, height = record["width"], record["height"]
    fractions = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
    return {"_cls": "Detection", "label": label, "bounding_box": fractions, **attributes}
