"""The folder teachers/ of a checkpoint: the example images that the decode setting `teachers` puts into each prompt.

It holds copies of training images, resized as the model sees them, and teachers.jsonl with their records in pixels of these
copies. So the setting works after the dataset is gone.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from boxtune.common.errors import UserError
from boxtune.common.files import write_whole
from boxtune.common.json_lines import BadLine, read_json_lines, to_json_line
from boxtune.data.images import load_image
from boxtune.data.record_checks import record_problems
from boxtune.data.records import Record

FOLDER, FILE_NAME = "teachers", "teachers.jsonl"


def save_examples(checkpoint: Path, examples: Sequence[tuple[Record, Image.Image]]) -> None:
    """Write (record, its image as the model sees it) of each example into a checkpoint's folder."""
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (record, image) in enumerate(examples):
        image.save(folder / f"{number}.png")
        lines.append(to_json_line(_resized(record, image.size) | {"image": f"{number}.png"}))
    write_whole(folder / FILE_NAME, "".join(lines))


def _resized(record: Record, size: tuple[int, int]) -> Record:
    """The record of the image resized to (width, height) `size`. The id differs from those of records that are asked about."""
    x, y = size[0] / record["width"], size[1] / record["height"]
    boxes_xyxy = [
        [x0 * x, y0 * y, min(x1 * x, size[0]), min(y1 * y, size[1])] for x0, y0, x1, y1 in record["objects"]["bbox"]
    ]
    objects = {**record["objects"], "bbox": boxes_xyxy}
    moved = record | {"id": f"{FOLDER}/{record['id']}", "width": size[0], "height": size[1], "objects": objects}
    return cast(Record, moved)


def read_examples(checkpoint: Path, count: int) -> list[Record]:
    """The first `count` examples of a checkpoint, with absolute image paths.

    Raises UserError if there are fewer, or if one cannot be used.
    """
    path = checkpoint / FOLDER / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"teachers: {count} example images belong into each prompt, but {path} does not exist. Take the folder {FOLDER}/ "
            "from the run's final/ folder; only training with teacher_ratio makes one. Or ask without examples: teachers 0."
        )
    lines = [line for _, line in read_json_lines(path)]
    problems = [
        problem
        for line in lines
        for problem in ([line.problem] if isinstance(line, BadLine) else record_problems(line))
    ]
    if problems:
        raise UserError(f"{path} cannot be used; take the folder {FOLDER}/ from the run's final/ folder:", problems)
    if len(lines) < count:
        raise UserError(
            f"teachers: {count} is too many, {path.parent} holds {len(lines)} example images (the recipe's num_teacher_samples)."
        )
    records = [record | {"image": str(path.parent.resolve() / record["image"])} for record in lines[:count]]
    if missing := [record["image"] for record in records if not Path(record["image"]).is_file()]:
        raise UserError(
            f"teachers: images are missing; take the folder {FOLDER}/ from the run's final/ folder:", missing
        )
    return records


def copy_examples(source: Path, target: Path) -> None:
    """Copy the examples of one checkpoint to another, if it has any."""
    if (source / FOLDER).is_dir():
        shutil.copytree(source / FOLDER, target / FOLDER)


def open_example_or(open_image: Callable[[Record], Image.Image], record: Record) -> Image.Image:
    """The image of an example from its file; that of any other record from `open_image`."""
    return load_image(Path(record["image"])) if record["id"].startswith(f"{FOLDER}/") else open_image(record)
