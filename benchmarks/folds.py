"""Cross-validation for a dataset that is too small for its own test split."""

import hashlib
from pathlib import Path

from boxtune.data.dataset import read_info, read_records, write_dataset
from boxtune.data.records import Record, image_path


def write_folds(data_dir: Path, out: Path, count: int) -> list[Path]:
    """Write `count` prepared datasets to out/fold-N and return their folders.

    The images of all splits of `data_dir` are ordered by a hash of their ids, so the folds depend only on the ids. Fold N
    tests on every `count`-th image from the N-th on, and trains on the others.
    """
    info = read_info(data_dir)
    records = [record for split in info["splits"] for record in read_records(data_dir, split)]
    records.sort(key=lambda record: hashlib.sha256(record["id"].encode()).hexdigest())
    here = [with_absolute_image(record, data_dir) for record in records]
    folds = []
    for number in range(count):
        test = here[number::count]
        left = {record["id"] for record in test}
        folds.append(out / f"fold-{number}")
        write_dataset(
            folds[-1],
            name=f"{info['name']} fold {number}",
            source_format=info["format"],
            classes=info["classes"],
            splits={"train": [record for record in here if record["id"] not in left], "test": test},
            problems=[],
            overwrite=True,
        )
    return folds


def with_absolute_image(record: Record, data_dir: Path) -> Record:
    """The record with an absolute image path, so that it can move to another folder."""
    return record | {"image": str(image_path(record, data_dir).resolve())}
