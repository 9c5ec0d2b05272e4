"""Images with ground-truth and predicted boxes for the trackers: as overlays for wandb, drawn into the image for TensorBoard."""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from boxtune.answers.predictions import Prediction
from boxtune.common.drawing import draw_boxes, draw_prediction, thumbnail
from boxtune.data.records import Record

SIDE = 640  # longest side of a tracked image in pixels
TAG = "eval/pictures"

# An image, its record and its prediction.
Predicted = tuple[Image.Image, Record, Prediction]


def log_images(callbacks: Iterable[TrainerCallback], rows: list[Predicted], classes: list[str], step: int) -> None:
    """Send the images to those of a trainer's callbacks that can show images."""
    for callback in callbacks:
        if isinstance(callback, WandbCallback):
            import wandb

            images = [_overlaid(*row, classes) for row in rows]
            # As in transformers' callback, the step is logged as a value, and wandb orders the entries by it.
            wandb.log({TAG: images, "train/global_step": step})
        elif isinstance(callback, TensorBoardCallback):
            for number, row in enumerate(rows):
                pixels = np.asarray(_drawn(*row))
                callback.tb_writer.add_image(f"{TAG}/{number}", pixels, step, dataformats="HWC")


def _drawn(image: Image.Image, record: Record, prediction: Prediction) -> Image.Image:
    """Ground truth in green, prediction in red."""
    image = thumbnail(image, SIDE)
    scale, ground_truth = image.width / record["width"], record["objects"]
    boxes_xyxy = [[value * scale for value in box] for box in ground_truth["bbox"]]
    image = draw_boxes(image, boxes_xyxy, ground_truth["category"], "lime")
    return draw_prediction(image, prediction["objects"], scale)


def _overlaid(image: Image.Image, record: Record, prediction: Prediction, classes: list[str]):
    """A wandb.Image whose boxes can be toggled by class. wandb cannot show points, so these are drawn into the image."""
    import wandb

    if "point" in prediction["objects"]:
        return wandb.Image(_drawn(image, record, prediction), caption=record["id"])
    # Labels outside the dataset's classes are also shown.
    names = list(dict.fromkeys([*classes, *record["objects"]["category"], *prediction["objects"]["category"]]))
    width, height = record["width"], record["height"]

    def box_data(objects: dict) -> dict:
        boxes = [
            {
                "position": {"minX": x0 / width, "minY": y0 / height, "maxX": x1 / width, "maxY": y1 / height},
                "class_id": names.index(label),
                "box_caption": label,
            }
            for (x0, y0, x1, y1), label in zip(objects["bbox"], objects["category"], strict=True)
        ]
        return {"box_data": boxes, "class_labels": dict(enumerate(names))}

    boxes = {"ground_truth": box_data(record["objects"]), "predictions": box_data(prediction["objects"])}
    return wandb.Image(thumbnail(image, SIDE), caption=record["id"], boxes=boxes)
