"""Gray images of varied sizes for benchmarks of speed, in which only lengths matter."""

import math
import random
from pathlib import Path

from PIL import Image

from boxtune.data.questions import question
from boxtune.data.records import Record

CLASSES = ["box"]


def gray_records(
    folder: Path, spread: float, examples: int, seed: int, largest: int, pixels_per_object: int
) -> list[Record]:
    """Records of images with a row of boxes, more of them in larger images. The images are files in `folder`, which is made.

    largest: the largest area in pixels. spread: the factor by which areas differ at most; those in between are equally likely on
    a logarithmic scale. With spread 1, all images are equal.
    """
    draw = random.Random(f"{seed} {spread}")
    folder.mkdir()
    records: list[Record] = []
    for i in range(examples):
        area, aspect = largest / spread ** draw.random(), 1.5 if spread == 1 else draw.uniform(0.67, 1.5)
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        path = folder / f"{i}.png"
        Image.new("RGB", (width, height), "gray").save(path)
        boxes = [[8 * k, 8 * k, 8 * k + 32, 8 * k + 32] for k in range(round(area / pixels_per_object))]
        objects = {"bbox": boxes, "category": CLASSES * len(boxes), "ignore": [False] * len(boxes)}
        messages = [{"role": "user", "content": question(CLASSES)}, {"role": "assistant", "content": "<boxes>"}]
        size = {"width": width, "height": height}
        records.append({"id": str(i), "image": str(path), **size, "objects": objects, "messages": messages})
    return records
