"""Tasks of Label Studio: an image's address, boxes as predictions or annotations, and a labelling configuration for them.

A rectangle's place and size are in percent of the image. `data_prep labelstudio` reads what an annotator then corrects.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr


@dataclass(frozen=True)
class Control:
    """The names that a labelling configuration gives: `from_name` to the RectangleLabels, `to_name` to the Image that they are
    drawn on, `field` to the field of a task that holds the image's address."""

    from_name: str = "label"
    to_name: str = "image"
    field: str = "image"


CONTROL = Control()


def labelling_config(classes: Sequence[str], control: Control = CONTROL) -> str:
    """The XML that a project's labelling interface needs for these classes."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in classes)
    name, field = quoteattr(control.to_name), quoteattr(f"${control.field}")
    return (
        f"<View>\n  <Image name={name} value={field}/>\n"
        f"  <RectangleLabels name={quoteattr(control.from_name)} toName={name}>\n{labels}  </RectangleLabels>\n</View>\n"
    )


def make_task(
    address: str,
    size: tuple[int, int],
    predicted: Mapping[str, list[Any]] | None = None,
    annotated: Mapping[str, list[Any]] | None = None,
    *,
    model_version: str = "boxtune",
    control: Control = CONTROL,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A task about one image.

    address: where Label Studio finds the image (see `local_address`).
    size: (width, height) of the upright image.
    predicted: columns `bbox` (xyxy in pixels), `category` and perhaps `score`, as in a Prediction's `objects`: boxes that an
        annotator starts from. None: the task has no prediction.
    annotated: the same columns of a record: boxes that count as annotated already.
    extra: further fields of the task's data, which columns of Label Studio's data manager show.
    """
    annotations = [] if annotated is None else [{"result": rectangles(annotated, size, control)}]
    task: dict[str, Any] = {"data": {**(extra or {}), control.field: address}, "annotations": annotations}
    if predicted is not None:
        task["predictions"] = [prediction_of(predicted, size, model_version, control)]
    return task


def prediction_of(
    objects: Mapping[str, list[Any]], size: tuple[int, int], model_version: str, control: Control = CONTROL
) -> dict[str, Any]:
    """What a model says about one image. Its score, by which tasks can be sorted, is the mean of the boxes'; None without any."""
    scores = objects.get("score") or []
    return {
        "model_version": model_version,
        "score": sum(scores) / len(scores) if scores else None,
        "result": rectangles(objects, size, control),
    }


def rectangles(
    objects: Mapping[str, list[Any]], size: tuple[int, int], control: Control = CONTROL
) -> list[dict[str, Any]]:
    """A region for each object. `size`: (width, height) of the upright image."""
    scores = objects.get("score") or [None] * len(objects["bbox"])
    rows = zip(objects["bbox"], objects["category"], scores, strict=True)
    return [_rectangle(number, row, size, control) for number, row in enumerate(rows, 1)]


def _rectangle(
    number: int, row: tuple[Sequence[float], str, float | None], size: tuple[int, int], control: Control
) -> dict[str, Any]:
    (x0, y0, x1, y1), label, score = row
    width, height = size
    left, top = 100 * x0 / width, 100 * y0 / height
    return {
        "id": f"box{number}",
        "type": "rectanglelabels",
        "from_name": control.from_name,
        "to_name": control.to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": left,
            "y": top,
            "width": 100 * x1 / width - left,
            "height": 100 * y1 / height - top,
            "rotation": 0,
            "rectanglelabels": [label],
        },
        **({} if score is None else {"score": score}),
    }


def document_root(images: Sequence[Path]) -> Path:
    """A folder for LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT from which Label Studio can serve all of these files (absolute paths):
    the parent of the folder that holds them, because it refuses to connect the root itself as a storage."""
    return image_folder(images).parent


def image_folder(images: Sequence[Path]) -> Path:
    """The innermost folder that holds all of these files (absolute paths)."""
    return Path(os.path.commonpath([path.parent for path in images]))


def local_address(image: Path, root: Path) -> str:
    """The address of a file below the document root, for a Label Studio that serves local files."""
    return f"/data/local-files/?d={quote(os.fsencode(image.relative_to(root)))}"
