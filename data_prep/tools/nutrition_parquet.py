"""Generated product images in the columns of openfoodfacts/nutrition-table-detection."""

import os
import tempfile
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from data_prep.reading.spool import folder_for_scratch
from data_prep.tools.nutrition_images import CATEGORY, JpegImage, generate_images, image_id, split_of


def write_openfoodfacts(target: Path, num_images: int, seed: int, size: int = 448, overwrite: bool = False) -> None:
    """Write FILE.parquet with all images, or train.parquet and val.parquet into a folder."""
    target = Path(os.path.realpath(target))
    is_file = target.suffix == ".parquet"
    files = {split: target if is_file else target / f"{split}.parquet" for split in ("train", "val")}
    _check_files(list(files.values()), overwrite)
    folder = target.parent if is_file else target
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=folder_for_scratch(folder)) as staging:
        rows: dict[Path, list[dict[str, Any]]] = {}
        for index, image in generate_images(num_images, seed, size):
            # The Hub dataset has no test split, so our test split is its val, and our validation split is part of its train.
            path = files["val" if split_of(index) == "test" else "train"]
            rows.setdefault(path, []).append(_row(index, image))
        for path, rows_of_file in rows.items():
            _write_parquet(rows_of_file, Path(staging) / path.name)
        folder.mkdir(parents=True, exist_ok=True)
        for path in rows:
            os.replace(Path(staging) / path.name, path)


def _check_files(paths: list[Path], overwrite: bool) -> None:
    """Raise UserError if a file exists and may not be replaced, or is a folder."""
    existing = sorted({str(path) for path in paths if path.exists()})
    if existing and not overwrite:
        raise UserError("These files exist. Use --overwrite to replace them, or another path.", existing)
    if folders := sorted({str(path) for path in paths if path.is_dir()}):
        raise UserError("These are folders and cannot be replaced by files. Use another path.", folders)


def _row(index: int, image: JpegImage) -> dict[str, Any]:
    width, height = image.width, image.height
    boxes_yxyx = [[y0 / height, x0 / width, y1 / height, x1 / width] for x0, y0, x1, y1 in image.boxes_xyxy]
    return {
        "image_id": image_id(index),
        "image": {"bytes": image.jpeg, "path": f"{image_id(index)}.jpg"},
        "width": width,
        "height": height,
        "meta": {"barcode": f"{index:013d}", "off_image_id": "1", "image_url": ""},
        "objects": {
            "bbox": boxes_yxyx,
            "category_id": [0] * len(boxes_yxyx),
            "category_name": [CATEGORY] * len(boxes_yxyx),
        },
    }


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value  # slow to import

    features = Features(
        {
            "image_id": Value("string"),
            "image": Image(),
            "width": Value("int64"),
            "height": Value("int64"),
            "meta": {name: Value("string") for name in ("barcode", "off_image_id", "image_url")},
            "objects": {
                "bbox": List(List(Value("float32"))),  # y_min, x_min, y_max, x_max in fractions of the image
                "category_id": List(Value("int64")),
                "category_name": List(Value("string")),
            },
        }
    )
    Dataset.from_list(rows, features=features).to_parquet(path)
