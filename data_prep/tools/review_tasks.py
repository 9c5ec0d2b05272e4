"""The listed images of `review` as tasks of Label Studio."""

import json
import os
from pathlib import Path
from typing import Any

from boxtune.common.files import write_whole
from boxtune.data.records import Record, image_path

# The versions of the boxes between which an annotator chooses.
AS_LABELED, SUGGESTED = "labels as they are", "suggested corrections"


def write_tasks(
    out: Path, entries: list[dict[str, Any]], records: list[Record], classes: list[str], data_dir: Path
) -> tuple[int, Path | None]:
    """Write tasks.json and labels.xml. Returns the number of tasks, and the document root that their addresses need.

    There is one task for each image, in the order of its best candidate. Its two predictions hold all boxes of the image: as
    labeled, and with the suggestions in place of what they correct. Either can be submitted as the new annotation.
    """
    from boxtune.reports.label_studio_tasks import document_root, labelling_config, local_address

    by_id: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_id.setdefault(entry["id"], []).append(entry)
    listed = [record for record in records if record["id"] in by_id]
    paths = {record["id"]: Path(os.path.abspath(image_path(record, data_dir))) for record in listed}
    record_of = {record["id"]: record for record in listed}
    root = document_root([*paths.values()]) if paths else None
    tasks = [
        _task(record_of[name], local_address(paths[name], root), candidates)
        for name, candidates in by_id.items()
        if root
    ]
    write_whole(out / "tasks.json", json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    write_whole(out / "labels.xml", labelling_config(classes))
    return len(tasks), root


def _task(record: Record, address: str, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    from boxtune.reports.label_studio_tasks import make_task, prediction_of

    size = (record["width"], record["height"])
    notes = [
        f"{one['kind']} {(one['label'] or one['suggestion'])['category']} ({one['score']:.2f})" for one in candidates
    ]
    # data_prep labelstudio gives the image this id again, whatever its address.
    extra = {"boxtune_id": record["id"], "review": ", ".join(notes)}
    task = make_task(address, size, extra=extra)
    task["predictions"] = []
    for version, rows in ((AS_LABELED, _rows(record)), (SUGGESTED, _corrected(_rows(record), candidates))):
        columns: dict[str, list[Any]] = {
            "bbox": [box for box, _, _ in rows],
            "category": [label for _, label, _ in rows],
        }
        prediction = prediction_of(columns, size, version) | {"score": candidates[0]["score"]}
        for result, (_, _, ignored) in zip(prediction["result"], rows, strict=True):
            if ignored:
                result["meta"] = {"text": ["ignore"]}
        task["predictions"].append(prediction)
    return task


_Row = tuple[list[float], str, bool]  # box_xyxy, label, ignored


def _rows(record: Record) -> list[_Row]:
    objects = record["objects"]
    return list(zip(objects["bbox"], objects["category"], objects["ignore"], strict=True))


def _corrected(rows: list[_Row], candidates: list[dict[str, Any]]) -> list[_Row]:
    """The rows with all suggestions: at most one replaces or removes each row, the others are added."""
    at = {one["position"]: one["suggestion"] for one in candidates if one["position"] is not None}
    added = [one["suggestion"] for one in candidates if one["position"] is None]
    kept = [(j, row) for j, row in enumerate(rows) if j not in at or at[j]]
    corrected = [(at[j]["bbox"], at[j]["category"], False) if j in at else row for j, row in kept]
    return corrected + [(suggestion["bbox"], suggestion["category"], False) for suggestion in added]
