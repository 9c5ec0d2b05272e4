"""Augmentation of a training image together with its boxes: crop, flip, size, colors, blur and compression.

torchvision's functions transform image and boxes in step (`torchvision.transforms.v2.functional` on a PIL image and a
`tv_tensors.BoundingBoxes`). Two of its ready-made transforms would lose objects and are not used: RandomIoUCrop drops every
object whose center is outside the crop, however much of it is visible, and SanitizeBoundingBoxes drops boxes smaller than a
pixel.
"""

import math
import random

import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes

from boxtune.data.images import MAX_ASPECT_RATIO
from boxtune.data.questions import answers_are_boxes
from boxtune.data.records import Record, visible_objects

# In the order in which they are applied. A flip mirrors text, so it suits only images in which left and right are equivalent.
OPERATIONS = ("crop", "flip", "resize", "color", "blur", "jpeg")

# Ranges from which the strengths are drawn. Crop sides are shares of the image's sides.
_CROP_SIDES, _SCALES, _ASPECTS = (0.6, 1.0), (0.6, 1.4), (0.95, 1.05)
_BRIGHTNESS, _HUE = (0.75, 1.25), (-0.02, 0.02)
_BLUR_RADII, _JPEG_QUALITIES = (0.3, 1.2), (40, 95)


def augment(
    record: Record, image: Image.Image, operations: list[str], max_pixels: int, draw: random.Random
) -> tuple[Record, Image.Image]:
    """(record, RGB image) after the named OPERATIONS, with every random choice taken from `draw`.

    Boxes are floats in pixels of the new image; `visible_objects` decides what becomes of cropped objects. A record with an
    answer in plain text is neither cropped nor flipped, because either could make the text wrong. An image of more than
    `max_pixels` is resized to that limit before its pixels are changed; the processor would do so anyway, and blur and JPEG
    then have the same strength for large and small images.
    """
    boxes = BoundingBoxes(
        torch.tensor(record["objects"]["bbox"], dtype=torch.float64).reshape(-1, 4),
        format="XYXY",
        canvas_size=(image.height, image.width),
        clamping_mode=None,  # keep the parts outside a crop, so that the visible share can be computed
    )
    image, boxes = _change_geometry(image, boxes, operations, answers_are_boxes(record), max_pixels, draw)
    image = _change_pixels(image, operations, draw)
    objects = visible_objects(record, boxes.numpy(), image.size)
    return record | {"width": image.width, "height": image.height, "objects": objects}, image


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
