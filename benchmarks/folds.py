"""Cross-validation of a data set that is too small for a test split of its own."""

import hashlib
from pathlib import Path

from boxtune.data.records import Record, image_path, read_info, read_records, write_dataset


def write_folds(data_dir: Path, out: Path, count: int) -> list[Path]:
    """`count` prepared data sets at out/fold-N: all pictures of `data_dir`, of whichever split, test is every N-th.

    The order is that of a hash of the ids, so the folds depend on nothing else.
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
    return record | {"image": str(image_path(record, data_dir).resolve())}
