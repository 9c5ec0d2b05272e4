"""Product pictures with labelled nutrition tables, drawn on the spot: data for a first training
without a download.

    python -m data_prep nutrition --out data/nutrition --num-images 600 --seed 0

The pictures are our own and free to use. Picture i depends on the seed and i alone, and its
split on i alone, so a larger data set holds the smaller one. With --as-openfoodfacts the same
pictures are written in the columns of openfoodfacts/nutrition-table-detection instead.
"""

import argparse
import io
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from boxtune.common.errors import UserError
from boxtune.common.files import path_argument
from boxtune.data.questions import turns_for
from boxtune.data.records import SPLITS, Record, check_writable_target, write_dataset
from data_prep.pipeline.summary import print_report
from data_prep.products.scenes import Picture, draw_image
from data_prep.reading.files import folder_for_scratch
from data_prep.reading.spool import Spool

CATEGORY = "nutrition-table"
SMALLEST_SIZE, LARGEST_SIZE = 224, 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path_argument, metavar="DIR", help="folder of the prepared data set")
    parser.add_argument("--num-images", type=int, default=600, metavar="N", help="how many pictures (default 600)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other pictures (default 0)")
    parser.add_argument(
        "--size", type=int, default=448, metavar="PIXELS", help="middle of the long sides, which vary by 0.7 to 1.4"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--as-openfoodfacts",
        type=path_argument,
        metavar="PATH",
        help="write the Open Food Facts columns instead of --out: all pictures to FILE.parquet, "
        "or train.parquet and val.parquet to a folder",
    )


def main(args: argparse.Namespace) -> None:
    """Draw and write. Raises UserError that lists every argument that cannot work."""
    problems = []
    if (args.out is None) == (args.as_openfoodfacts is None):
        problems.append("give either --out DIR or --as-openfoodfacts PATH")
    if args.num_images < 1:
        problems.append(f"--num-images {args.num_images}: must be at least 1")
    if args.seed < 0:
        problems.append(f"--seed {args.seed}: must not be negative")
    if not SMALLEST_SIZE <= args.size <= LARGEST_SIZE:
        problems.append(f"--size {args.size}: must be {SMALLEST_SIZE} to {LARGEST_SIZE}")
    if problems:
        raise UserError("nutrition: these arguments cannot work:", problems)
    if args.out is not None:
        write_prepared(args.out, args.num_images, args.seed, args.size, args.overwrite)
    else:
        write_openfoodfacts(args.as_openfoodfacts, args.num_images, args.seed, args.size, args.overwrite)


def split_of(index: int) -> str:
    """Eight in ten are for training; a picture's split does not change when more are drawn."""
    return {8: "validation", 9: "test"}.get(index % 10, "train")


def picture_id(index: int) -> str:
    return f"product_{index:06d}"


def write_prepared(directory: Path, num_images: int, seed: int, size: int = 448, overwrite: bool = False) -> None:
    """A prepared data set; nothing stays behind where drawing is interrupted."""
    directory = Path(os.path.realpath(directory))
    check_writable_target(directory, overwrite)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=folder_for_scratch(directory)) as staging:
        images = Path(staging) / "images"
        images.mkdir()
        splits: dict[str, Spool[Record]] = {split: Spool(Path(staging)) for split in SPLITS}
        for index, picture, jpeg in _pictures(num_images, seed, size):
            (images / f"{picture_id(index)}.jpg").write_bytes(jpeg)
            splits[split_of(index)].append(_record(index, picture))
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
    print_report(directory, [CATEGORY], splits, [])


def _pictures(num_images: int, seed: int, size: int) -> Iterator[tuple[int, Picture, bytes]]:
    """(index, picture, its JPEG file), drawn by as many processes as there are cores."""
    # An interrupt is for this process; the others would each answer it with a traceback.
    pool = ProcessPoolExecutor(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        drawn = pool.map(partial(_draw, seed, size), range(num_images), chunksize=8)
        for index, (picture, jpeg) in enumerate(tqdm(drawn, "drawing", num_images, unit="image", disable=None)):
            yield index, picture, jpeg
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(seed: int, size: int, index: int) -> tuple[Picture, bytes]:
    picture, buffer = draw_image(seed, index, size), io.BytesIO()
    picture.image.save(buffer, "JPEG", quality=picture.jpeg_quality)
    return picture, buffer.getvalue()


def _record(index: int, picture: Picture) -> Record:
    count = len(picture.boxes_xyxy)
    return {
        "id": picture_id(index),
        "image": f"images/{picture_id(index)}.jpg",
        "width": picture.image.width,
        "height": picture.image.height,
        "objects": {"bbox": picture.boxes_xyxy, "category": [CATEGORY] * count, "ignore": [False] * count},
        "messages": turns_for([CATEGORY]),
    }


def write_openfoodfacts(target: Path, num_images: int, seed: int, size: int = 448, overwrite: bool = False) -> None:
    """Parquet with the columns of openfoodfacts/nutrition-table-detection: FILE.parquet, or a folder for both its splits."""
    target = Path(os.path.realpath(target))
    single = target.suffix == ".parquet"
    files = (
        {"train": target, "val": target} if single else {name: target / f"{name}.parquet" for name in ("train", "val")}
    )
    existing = sorted({str(path) for path in files.values() if path.exists()})
    if existing and not overwrite:
        raise UserError("These files exist. Use --overwrite to replace them, or another path.", existing)
    if folders := sorted({str(path) for path in files.values() if path.is_dir()}):
        raise UserError("These are folders, and no file can be written in their place. Use another path.", folders)
    folder = target.parent if single else target
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=folder_for_scratch(folder)) as staging:
        rows: dict[Path, list[dict]] = {}
        for index, picture, jpeg in _pictures(num_images, seed, size):
            path = files["val" if split_of(index) == "test" else "train"]
            rows.setdefault(path, []).append(_openfoodfacts_row(index, picture, jpeg))
        for path, its_rows in rows.items():
            _write_parquet(its_rows, Path(staging) / path.name)
        folder.mkdir(parents=True, exist_ok=True)
        for path in rows:
            os.replace(Path(staging) / path.name, path)


def _openfoodfacts_row(index: int, picture: Picture, jpeg: bytes) -> dict:
    width, height = picture.image.size
    boxes_yxyx = [[y0 / height, x0 / width, y1 / height, x1 / width] for x0, y0, x1, y1 in picture.boxes_xyxy]
    return {
        "image_id": picture_id(index),
        "image": {"bytes": jpeg, "path": f"{picture_id(index)}.jpg"},
        "width": width,
        "height": height,
        "meta": {"barcode": f"{index:013d}", "off_image_id": "1", "image_url": ""},
        "objects": {
            "bbox": boxes_yxyx,
            "category_id": [0] * len(boxes_yxyx),
            "category_name": [CATEGORY] * len(boxes_yxyx),
        },
    }


def _write_parquet(rows: list[dict], path: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value  # slow to import, and only needed here

    features = Features(
        {
            "image_id": Value("string"),
            "image": Image(),
            "width": Value("int64"),
            "height": Value("int64"),
            "meta": {name: Value("string") for name in ("barcode", "off_image_id", "image_url")},
            "objects": {
                "bbox": List(List(Value("float32"))),  # y_min, x_min, y_max, x_max as shares of the picture
                "category_id": List(Value("int64")),
                "category_name": List(Value("string")),
            },
        }
    )
    Dataset.from_list(rows, features=features).to_parquet(path)
