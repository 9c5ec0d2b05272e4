"""Change a training picture and its boxes together: another size, another part, other colours.

torchvision's functions move picture and boxes in step (`torchvision.transforms.v2.functional` on a PIL picture and a
`tv_tensors.BoundingBoxes`). Its ready transforms are not used where they would lose objects: RandomIoUCrop drops whatever
has its centre outside, however much is visible, and SanitizeBoundingBoxes what is smaller than a pixel.
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
from boxtune.data.questions import answer_category
from boxtune.data.records import MAX_ASPECT_RATIO, Record, with_objects

# In the order in which they are done. A flip mirrors letters, so it is for pictures in which left and right are alike.
OPERATIONS = ("crop", "flip", "resize", "color", "blur", "jpeg")
# An object stays an answer where this share of it is left. A box whose centre is inside (the rule of SSD, arXiv 1512.02325)
# shows at least a quarter.
MIN_VISIBLE = 0.25

_CROP_SIDES, _SCALES, _ASPECTS = (0.6, 1.0), (0.6, 1.4), (0.95, 1.05)
_BRIGHTNESS, _HUE = (0.75, 1.25), (-0.02, 0.02)
_BLUR_RADII, _JPEG_QUALITIES = (0.3, 1.2), (40, 95)


def augment(
    record: Record, image: Image.Image, operations: list[str], max_pixels: int, draw: random.Random
) -> tuple[Record, Image.Image]:
    """(record, RGB picture) after those of OPERATIONS that are named, with all that they leave to chance from `draw`.

    The boxes stay floats, in pixels of the new picture. An object of which less than MIN_VISIBLE is left is ignored, one of
    which nothing is left is gone. Cropping and flipping leave alone a record that has an answer in plain words, which they
    could make untrue. ImageFinder larger than `max_pixels`, which the processor would shrink, are shrunk before all that changes
    pixels, so that blur and JPEG are as strong for a photograph of 12 megapixels as for a thumbnail.
    """
    boxes = BoundingBoxes(
        torch.tensor(record["objects"]["bbox"], dtype=torch.float64).reshape(-1, 4),
        format="XYXY",
        canvas_size=(image.height, image.width),
        clamping_mode=None,  # so that what a crop has left can be compared with the whole
    )
    answers = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
    movable = all(answer_category(answer)[0] for answer in answers)
    if "crop" in operations and movable and draw.random() < 0.5:
        window = _draw_window(image.size, draw)
        image, boxes = functional.crop(image, *window), functional.crop(boxes, *window)
    if "flip" in operations and movable and draw.random() < 0.5:
        image, boxes = functional.horizontal_flip(image), functional.horizontal_flip(boxes)
    size = _draw_size(image.size, "resize" in operations, max_pixels, draw)
    if set(operations) - {"crop", "flip"} and size != (image.height, image.width):
        image, boxes = (functional.resize(each, list(size), InterpolationMode.BICUBIC) for each in (image, boxes))
    if "color" in operations:
        for adjust in (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation):
            image = adjust(image, draw.uniform(*_BRIGHTNESS))
        image = functional.adjust_hue(image, draw.uniform(*_HUE))
    if "blur" in operations and draw.random() < 0.3:
        # Pillow's, because torchvision's refuses pictures that are narrower than its kernel.
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(*_BLUR_RADII)))
    if "jpeg" in operations and draw.random() < 0.5:
        image = functional.jpeg(image, draw.randint(*_JPEG_QUALITIES))
    return _place(record, boxes.numpy(), image.size), image


def _draw_window(image_size: tuple[int, int], draw: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part of the picture that is no longer than a processor takes."""
    width, height = (max(1, round(side * draw.uniform(*_CROP_SIDES))) for side in image_size)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        width, height = image_size
    return draw.randint(0, image_size[1] - height), draw.randint(0, image_size[0] - width), height, width


def _draw_size(image_size: tuple[int, int], jitter: bool, max_pixels: int, draw: random.Random) -> tuple[int, int]:
    """(height, width) of at most `max_pixels`, with `jitter` near the size at which the model would see the picture."""
    width, height = image_size
    seen = min(1.0, math.sqrt(max_pixels / (width * height)))
    scale, aspect = 1.0, 1.0
    if jitter:
        scale = math.exp(draw.uniform(*map(math.log, _SCALES)))
        aspect = draw.uniform(*_ASPECTS)
    scale = min(seen * scale, math.sqrt(max_pixels / (width * height)))
    new_width, new_height = max(1, round(width * scale * aspect)), max(1, round(height * scale / aspect))
    if max(new_width, new_height) > MAX_ASPECT_RATIO * min(new_width, new_height):
        return height, width
    return new_height, new_width


def _place(record: Record, boxes_xyxy: np.ndarray, image_size: tuple[int, int]) -> Record:
    """The record with its boxes, which may reach beyond the picture, cut to it."""
    width, height = image_size
    inside = boxes_xyxy.clip(0, [width, height, width, height])
    visible = np.minimum(inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1]) > 0
    shares = np.divide(box_area(inside), box_area(boxes_xyxy), out=np.zeros(len(inside)), where=visible)
    kept = np.flatnonzero(visible).tolist()
    objects = with_objects(record, kept)["objects"]
    objects["bbox"] = inside[kept].tolist()
    objects["ignore"] = [bool(record["objects"]["ignore"][i] or shares[i] < MIN_VISIBLE) for i in kept]
    return record | {"width": width, "height": height, "objects": objects}
