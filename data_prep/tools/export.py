"""Export a prepared dataset for other trainers and tools.

    python -m data_prep export DATA --out DIR --export coco
    python -m data_prep export DATA --out DIR --export yolo
    python -m data_prep export DATA --out DIR --export trl \\
        --family qwen2_5_vl --max-pixels 1003520
    python -m data_prep export DATA --out DIR --export swift \\
        --family qwen3_vl --max-pixels 1003520
    python -m data_prep export DATA --out DIR --export llamafactory \\
        --family qwen2_5_vl --max-pixels 1003520

Questions and answers have boxtune's wording. Qwen2.5-VL's boxes are pixels of the image after
resizing, so they are correct for one pixel budget only. Give the other trainer the same budget,
as the printed instructions show.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import path_argument
from boxtune.data.dataset import read_info, read_splits
from boxtune.data.image_checks import upright_size
from boxtune.data.records import Record, image_path
from boxtune.families import FAMILIES
from data_prep.tools.export_detectors import write_coco, write_yolo
from data_prep.tools.export_job import ExportJob, ModelInput
from data_prep.tools.export_trainers import write_llamafactory, write_swift, write_trl

# Each writer fills `job.staged` and returns what to do next, in words.
DETECTOR_WRITERS: dict[str, Callable[[ExportJob], str]] = {"coco": write_coco, "yolo": write_yolo}
TRAINER_WRITERS: dict[str, Callable[[ExportJob, ModelInput], str]] = {
    "trl": write_trl,
    "swift": write_swift,
    "llamafactory": write_llamafactory,
}
# For families whose coordinates do not depend on the budget.
_DEFAULT_MAX_PIXELS = 1_003_520


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", type=path_argument, help="a prepared dataset")
    parser.add_argument(
        "--export", choices=[*TRAINER_WRITERS, *DETECTOR_WRITERS], required=True, help="the format to write"
    )
    parser.add_argument("--out", metavar="DIR", type=path_argument, required=True, help="a new folder")
    parser.add_argument(
        "--family",
        choices=list(FAMILIES),
        metavar="FAMILY",
        help=f"model family to train (not for coco, yolo): {', '.join(FAMILIES)}",
    )
    parser.add_argument(
        "--min-pixels",
        metavar="N",
        type=int,
        default=3136,
        help="lower limit of the training run's pixel budget (default 3136)",
    )
    parser.add_argument("--max-pixels", metavar="N", type=int, help="pixel budget of the training run")
    parser.add_argument(
        "--copy-images",
        action="store_true",
        help="copy the images, with EXIF rotation applied, instead of linking to them",
    )


def main(args: argparse.Namespace) -> None:
    """Write the whole export, or nothing."""
    max_pixels = _DEFAULT_MAX_PIXELS if args.max_pixels is None else args.max_pixels
    _check_arguments(args, max_pixels)
    splits, classes = read_splits(args.data), read_info(args.data)["classes"]
    _check_dataset(args.data, splits, classes)
    if args.export in ("swift", "llamafactory") and "train" not in splits:
        raise UserError(
            f"{args.data} has no training images, only {', '.join(splits)}, so there is nothing to train on."
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}.", dir=args.out.parent) as scratch:
        staged = Path(scratch) / "export"
        staged.mkdir()
        job = ExportJob(args.data, splits, classes, args.out, staged, args.copy_images)
        if args.export in TRAINER_WRITERS:
            model_input = ModelInput(FAMILIES[args.family], args.min_pixels, max_pixels)
            advice = TRAINER_WRITERS[args.export](job, model_input)
        else:
            advice = DETECTOR_WRITERS[args.export](job)
        if args.out.exists():
            args.out.rmdir()  # _check_arguments has made sure that it is empty
        os.rename(staged, args.out)
    counts = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
    print(f"{args.out}: {args.export}, {counts} images. {advice}")


def _check_arguments(args: argparse.Namespace, max_pixels: int) -> None:
    """Raise UserError listing all invalid arguments."""
    problems = []
    is_trainer = args.export in TRAINER_WRITERS
    if is_trainer and not args.family:
        problems.append(f"--export {args.export} needs --family: {', '.join(FAMILIES)}")
    if is_trainer and args.family and FAMILIES[args.family].coordinate_steps is None and args.max_pixels is None:
        problems.append(
            f"{args.family} writes boxes in pixels of the resized image: give the --max-pixels of your training"
        )
    least = FAMILIES[args.family].factor ** 2 if args.family else 1
    if not least <= args.min_pixels <= max_pixels:
        problems.append(f"--min-pixels {args.min_pixels}, --max-pixels {max_pixels}: need {least} ≤ min ≤ max")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        problems.append(f"--out {args.out} exists; name a new folder")
    if problems:
        raise UserError("export: invalid arguments:", problems)


def _check_dataset(data_dir: Path, splits: dict[str, list[Record]], classes: list[str]) -> None:
    """Raise UserError listing all images that cannot be opened or have changed, and all unknown classes."""
    records = [record for members in splits.values() for record in members]
    problems = []
    for record in records:
        path = image_path(record, data_dir)
        size, recorded = upright_size(path), (record["width"], record["height"])
        if size is None:
            problems.append(f"{record['id']}: {path} cannot be opened")
        elif size != recorded:
            problems.append(
                f"{record['id']}: {path} is {size[0]} × {size[1]}, but its record says {recorded[0]} × {recorded[1]}"
            )
    used = {label for record in records for label in record["objects"]["category"]}
    problems += [f"class {label!r} is not one of the classes in dataset.json" for label in sorted(used - {*classes})]
    if problems:
        raise UserError(f"{data_dir}: {len(problems)} problem(s). Prepare the data again:", problems)
