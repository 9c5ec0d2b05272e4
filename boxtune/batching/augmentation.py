"""Augmentation of a training image together with its boxes: crop, flip, size, colors, blur and compression.

torchvision's functions transform image and boxes in step (`torchvision.transforms.v2.functional` on a PIL image and a
`tv_tensors.BoundingBoxes`). Two of its ready-made transforms would lose objects and are not used: RandomIoUCrop drops every
object whose center is outside the crop, however much of it is visible, and SanitizeBoundingBoxes drops boxes smaller than a
pixel.
"""

import math
import random

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes

from boxtune.data.boxes import box_area
from boxtune.data.images import MAX_ASPECT_RATIO
from boxtune.data.questions import answer_category
from boxtune.data.records import Record, with_objects

# In the order in which they are applied. A flip mirrors text, so it suits only images in which left and right are equivalent.
OPERATIONS = ("crop", "flip", "resize", "color", "blur", "jpeg")

# A cropped object stays part of the answer if at least this share of its area is visible. A quarter is the least that is
# visible of a box whose center is inside the crop, which is the rule of SSD (arXiv 1512.02325).
MIN_VISIBLE = 0.25

# Ranges from which the strengths are drawn. Crop sides are shares of the image's sides.
_CROP_SIDES, _SCALES, _ASPECTS = (0.6, 1.0), (0.6, 1.4), (0.95, 1.05)
_BRIGHTNESS, _HUE = (0.75, 1.25), (-0.02, 0.02)
_BLUR_RADII, _JPEG_QUALITIES = (0.3, 1.2), (40, 95)


def augment(
    record: Record, image: Image.Image, operations: list[str], max_pixels: int, draw: random.Random
) -> tuple[Record, Image.Image]:
    """(record, RGB image) after the named OPERATIONS, with every random choice taken from `draw`.

    Boxes are floats in pixels of the new image. An object with less than MIN_VISIBLE of its area left becomes ignored; an
    object with nothing left is removed. A record with an answer in plain text is neither cropped nor flipped, because either
    could make the text wrong. An image of more than `max_pixels` is resized to that limit before its pixels are changed; the
    processor would do so anyway, and blur and JPEG then have the same strength for large and small images.
    """
    boxes = BoundingBoxes(
        torch.tensor(record["objects"]["bbox"], dtype=torch.float64).reshape(-1, 4),
        format="XYXY",
        canvas_size=(image.height, image.width),
        clamping_mode=None,  # keep the parts outside a crop, so that the visible share can be computed
    )
    image, boxes = _change_geometry(image, boxes, operations, _can_move(record), max_pixels, draw)
    image = _change_pixels(image, operations, draw)
    return _with_boxes(record, boxes.numpy(), image.size), image


def _can_move(record: Record) -> bool:
    """Whether every answer stands for boxes, so that it stays right when objects move."""
    return all(answer_category(turn["content"])[0] for turn in record["messages"] if turn["role"] == "assistant")


def _change_geometry(
    image: Image.Image,
    boxes: BoundingBoxes,
    operations: list[str],
    can_move: bool,
    max_pixels: int,
    draw: random.Random,
) -> tuple[Image.Image, BoundingBoxes]:
    if "crop" in operations and can_move and draw.random() < 0.5:
        window = _draw_window(image.size, draw)
        image, boxes = functional.crop(image, *window), functional.crop(boxes, *window)
    if "flip" in operations and can_move and draw.random() < 0.5:
        image, boxes = functional.horizontal_flip(image), functional.horizontal_flip(boxes)
    size = _draw_size(image.size, "resize" in operations, max_pixels, draw)
    if set(operations) - {"crop", "flip"} and size != (image.height, image.width):
        image, boxes = (functional.resize(each, list(size), InterpolationMode.BICUBIC) for each in (image, boxes))
    return image, boxes


def _change_pixels(image: Image.Image, operations: list[str], draw: random.Random) -> Image.Image:
    if "color" in operations:
        for adjust in (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation):
            image = adjust(image, draw.uniform(*_BRIGHTNESS))
        image = functional.adjust_hue(image, draw.uniform(*_HUE))
    if "blur" in operations and draw.random() < 0.3:
        # Pillow's filter, because torchvision's rejects images that are narrower than its kernel.
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(*_BLUR_RADII)))
    if "jpeg" in operations and draw.random() < 0.5:
        image = functional.jpeg(image, draw.randint(*_JPEG_QUALITIES))
    return image


def _draw_window(image_size: tuple[int, int], draw: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop. It is the whole image if the crop would exceed the aspect ratio limit."""
    width, height = (max(1, round(side * draw.uniform(*_CROP_SIDES))) for side in image_size)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        width, height = image_size
    return draw.randint(0, image_size[1] - height), draw.randint(0, image_size[0] - width), height, width


def _draw_size(image_size: tuple[int, int], jitter: bool, max_pixels: int, draw: random.Random) -> tuple[int, int]:
    """(height, width) of at most `max_pixels`.

    With `jitter`, scale and aspect ratio vary around the size at which the model would see the image.
    """
    width, height = image_size
    largest_scale = math.sqrt(max_pixels / (width * height))
    scale, aspect = 1.0, 1.0
    if jitter:
        scale = math.exp(draw.uniform(*map(math.log, _SCALES)))
        aspect = draw.uniform(*_ASPECTS)
    scale = min(min(1.0, largest_scale) * scale, largest_scale)
    new_width, new_height = max(1, round(width * scale * aspect)), max(1, round(height * scale / aspect))
    if max(new_width, new_height) > MAX_ASPECT_RATIO * min(new_width, new_height):
        return height, width
    return new_height, new_width


def _with_boxes(record: Record, boxes_xyxy: np.ndarray, image_size: tuple[int, int]) -> Record:
    """The record with new boxes, clipped to an image of (width, height) `image_size`."""
    width, height = image_size
    inside = boxes_xyxy.clip(0, [width, height, width, height])
    visible = np.minimum(inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1]) > 0
    shares = np.divide(box_area(inside), box_area(boxes_xyxy), out=np.zeros(len(inside)), where=visible)
    kept = np.flatnonzero(visible).tolist()
    objects = with_objects(record, kept)["objects"]
    objects["bbox"] = inside[kept].tolist()
    objects["ignore"] = [bool(record["objects"]["ignore"][i] or shares[i] < MIN_VISIBLE) for i in kept]
    return record | {"width": width, "height": height, "objects": objects}
