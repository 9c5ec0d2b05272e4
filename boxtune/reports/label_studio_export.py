"""Predictions as tasks of Label Studio, whose annotators start from their boxes."""

import json
from pathlib import Path

from boxtune.common.files import write_whole
from boxtune.data.records import Record
from boxtune.reports.export_rows import Rows
from boxtune.reports.label_studio_tasks import document_root, image_folder, labelling_config, local_address, make_task

_SETTINGS = """Start Label Studio with these two settings:

    LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}

In the project, paste label_config.xml as the labelling interface, connect the source storage "Local files" with the path

    {images}

without syncing it, and import tasks.json. docs/annotation_tools.md tells more.
"""


def write_label_studio(
    out: Path, records: list[Record], rows: list[Rows], classes: list[str], split: str | None
) -> Path:
    """labelstudio/tasks.json, label_config.xml for its project, and README.txt with the settings that show its images.

    Images of records are absolute paths.
    """
    folder = out / "labelstudio"
    images = [Path(record["image"]) for record in records]
    root = document_root(images) if images else Path("/")
    tasks = [
        make_task(
            local_address(image, root),
            (record["width"], record["height"]),
            {
                "bbox": [box for box, _, _ in objects],
                "category": [classes[number] for _, number, _ in objects],
                "score": [score for _, _, score in objects],
            },
            extra={"boxtune_id": record["id"]},
        )
        for image, record, objects in zip(images, records, rows, strict=True)
    ]
    settings = _SETTINGS.format(root=root, images=image_folder(images) if images else root)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "README.txt", settings)
    write_whole(folder / "label_config.xml", labelling_config(classes))
    write_whole(folder / "tasks.json", json.dumps(tasks, ensure_ascii=False) + "\n")
    return folder / "tasks.json"
