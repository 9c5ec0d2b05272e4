"""Generate product images with labeled nutrition tables, for a first training run without a
download.

    python -m data_prep nutrition --out data/nutrition --num-images 600 --seed 0

The images are our own and free to use. An image depends only on the seed and its index, and
its split only on its index, so a larger dataset contains the smaller one. Each record's
"view" is "close" (the label was photographed; four of five) or "distant" (whole packages).
With --as-openfoodfacts the same images are written in the columns of
openfoodfacts/nutrition-table-detection instead.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import cast

from boxtune.common.errors import UserError
from boxtune.common.files import path_argument
from boxtune.data.dataset import check_writable_target, write_dataset
from boxtune.data.questions import turns_for
from boxtune.data.records import SPLITS, Record
from data_prep.pipeline.summary import print_summary
from data_prep.reading.spool import Spool, folder_for_scratch
from data_prep.tools.nutrition_images import CATEGORY, JpegImage, generate_images, image_id, split_of
from data_prep.tools.nutrition_parquet import write_openfoodfacts

_MIN_SIZE, _MAX_SIZE = 224, 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path_argument, metavar="DIR", help="folder of the prepared dataset")
    parser.add_argument("--num-images", type=int, default=600, metavar="N", help="number of images (default 600)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed gives other images (default 0)")
    parser.add_argument(
        "--size",
        type=int,
        default=448,
        metavar="PIXELS",
        help="typical longer side, which varies between 0.7 and 1.4 times this (default 448)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset or file")
    parser.add_argument(
        "--as-openfoodfacts",
        type=path_argument,
        metavar="PATH",
        help="write the Open Food Facts columns instead of --out: all images to FILE.parquet, "
        "or train.parquet and val.parquet to a folder",
    )


def main(args: argparse.Namespace) -> None:
    """Generate and write the images. Raises UserError listing all invalid arguments."""
    problems = []
    if (args.out is None) == (args.as_openfoodfacts is None):
        problems.append("give either --out DIR or --as-openfoodfacts PATH")
    if args.num_images < 1:
        problems.append(f"--num-images {args.num_images}: must be at least 1")
    if args.seed < 0:
        problems.append(f"--seed {args.seed}: must not be negative")
    if not _MIN_SIZE <= args.size <= _MAX_SIZE:
        problems.append(f"--size {args.size}: must be between {_MIN_SIZE} and {_MAX_SIZE}")
    if problems:
        raise UserError("nutrition: invalid arguments:", problems)
    if args.out is not None:
        write_prepared(args.out, args.num_images, args.seed, args.size, args.overwrite)
    else:
        write_openfoodfacts(args.as_openfoodfacts, args.num_images, args.seed, args.size, args.overwrite)


def write_prepared(directory: Path, num_images: int, seed: int, size: int = 448, overwrite: bool = False) -> None:
    """Write a prepared dataset. If this is interrupted, nothing is left behind."""
    directory = Path(os.path.realpath(directory))
    check_writable_target(directory, overwrite)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=folder_for_scratch(directory)) as staging:
        images = Path(staging) / "images"
        images.mkdir()
        splits: dict[str, Spool[Record]] = {split: Spool(Path(staging)) for split in SPLITS}
        for index, image in generate_images(num_images, seed, size):
            (images / f"{image_id(index)}.jpg").write_bytes(image.jpeg)
            splits[split_of(index)].append(_record(index, image))
        splits = {split: records for split, records in splits.items() if records}
        write_dataset(
            directory,
            name="nutrition",
            source_format="nutrition",
            classes=[CATEGORY],
            splits=splits,
            problems=[],
            overwrite=overwrite,
            staged_images=images,
        )
    print_summary(directory, [CATEGORY], splits, [])


def _record(index: int, image: JpegImage) -> Record:
    count = len(image.boxes_xyxy)
    record = {
        "id": image_id(index),
        "image": f"images/{image_id(index)}.jpg",
        "width": image.width,
        "height": image.height,
        "view": image.view,
        "objects": {"bbox": image.boxes_xyxy, "category": [CATEGORY] * count, "ignore": [False] * count},
        "messages": turns_for([CATEGORY]),
    }
    return cast(Record, record)
