"""ImageFinder with true and predicted boxes for wandb, which overlays them itself, and TensorBoard, which gets them drawn."""

from collections.abc import Iterable

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from boxtune.answers.predictions import Prediction
from boxtune.common.drawing import draw_boxes, draw_prediction, thumbnail
from boxtune.data.records import Record

SIDE = 640  # longest side of a tracked picture
TAG = "eval/pictures"

# A picture, its record, and the answer to it.
Answered = tuple[Image.Image, Record, Prediction]


def log_images(callbacks: Iterable[TrainerCallback], answered: list[Answered], classes: list[str], step: int) -> None:
    """Send the pictures to those trackers, among a trainer's callbacks, that show pictures."""
    for callback in callbacks:
        if isinstance(callback, WandbCallback):
            import wandb

            images = [_overlaid(*picture, classes) for picture in answered]
            # As transformers logs: the step is a value of its own, by which wandb orders.
            wandb.log({TAG: images, "train/global_step": step})
        elif isinstance(callback, TensorBoardCallback):
            for number, picture in enumerate(answered):
                pixels = np.asarray(_drawn(*picture))
                callback.tb_writer.add_image(f"{TAG}/{number}", pixels, step, dataformats="HWC")


def _drawn(image: Image.Image, record: Record, prediction: Prediction) -> Image.Image:
    """Truth in green, the answer in red."""
    image = thumbnail(image, SIDE)
    scale, truth = image.width / record["width"], record["objects"]
    boxes_xyxy = [[value * scale for value in box] for box in truth["bbox"]]
    image = draw_boxes(image, boxes_xyxy, truth["category"], "lime")
    return draw_prediction(image, prediction["objects"], scale)


def _overlaid(image: Image.Image, record: Record, prediction: Prediction, classes: list[str]):
    """A wandb.Image whose boxes can be switched on and off by class there. Points, which it cannot show, are drawn."""
    import wandb

    if "point" in prediction["objects"]:
        return wandb.Image(_drawn(image, record, prediction), caption=record["id"])
    # Labels that are no class of the data set are shown, too.
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
