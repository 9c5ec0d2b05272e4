"""A `datasets` table such as openfoodfacts/nutrition-table-detection: one row for each picture, with `image`, `width`,
`height`, `objects.bbox` = [y_min, x_min, y_max, x_max] in fractions from 0 to 1, and `objects.category_name`.

SOURCE is a hub id, a Parquet file, a folder of Parquet files named after their splits, or a `save_to_disk` folder.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from boxtune.errors import UserError
from data_prep.files import files_below, safe_name, stated_size, suffix_of
from data_prep.source import Item, Options, Row, Source
from data_prep.splits import split_of

# What `datasets` and Arrow raise on torn files.
_TORN = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


def read(source: Path, options: Options) -> Source:
    found = Source(layout="yxyx", fractions=True)
    folder = options.scratch / "table"
    for split, number, row in _rows(source, options.scratch / "cache"):
        objects = _columns(row["objects"])
        if fault := _fault(row, objects):
            found.errors.append(f"{source}: {split or 'table'} row {number}: {fault}")
        else:
            found.items.append(_read_row(row, objects, split, number, folder / f"{len(found.items)}"))
    return found


def _fault(row: dict, objects: dict[str, list] | None) -> str | None:
    """What keeps a row from being read, or None."""
    image = row["image"]
    if image is None or (image["bytes"] is None and not os.path.isfile(image["path"] or "")):
        return f"no image ({image['path']})" if image and image["path"] else "no image"
    if objects is None:
        return f"objects must be rows, or lists side by side, got {row['objects']!r:.100}"
    if "bbox" not in objects or "category_name" not in objects:
        return f"objects needs bbox and category_name, got {', '.join(objects)}"
    if len({len(values) for values in objects.values()}) > 1:
        return f"the columns of objects differ in length: { {key: len(values) for key, values in objects.items()} }"
    return None


def _read_row(row: dict, objects: dict[str, list], split: str | None, number: int, place: Path) -> Item:
    image = row["image"]
    data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    named = row.get("image_id") or (Path(image["path"]).stem if image["path"] else f"{number:06d}")
    name = safe_name(str(named)) + suffix_of(data)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)
    used = {"bbox", "category_name", "category_id"}
    others = {key: values for key, values in objects.items() if key not in used}
    rows = [
        Row(
            box if isinstance(box, list) else [box],
            str(category or "").strip(),
            extra={key: values[i] for key, values in others.items()},
        )
        for i, (box, category) in enumerate(zip(objects["bbox"], objects["category_name"], strict=True))
    ]
    extra = {key: row[key] for key in row if key not in {"image", "image_id", "width", "height", "objects"}}
    return Item(name, place, rows, split, stated_size(row.get("width"), row.get("height")), extra)


def _columns(objects) -> dict[str, list] | None:
    """The objects as parallel columns; newer tables hold a list of rows. None where they are neither."""
    if not objects:
        return _EMPTY
    if isinstance(objects, list) and all(isinstance(thing, dict) for thing in objects):
        return {key: [thing.get(key) for thing in objects] for key in objects[0]}
    return objects if isinstance(objects, dict) and all(isinstance(v, list) for v in objects.values()) else None


_EMPTY: dict[str, list] = {"bbox": [], "category_name": []}


def _rows(source: Path, cache: Path) -> Iterator[tuple[str | None, int, dict]]:
    """(split, row number, row) with pictures still encoded: {"bytes", "path"}."""
    import datasets  # half a second, which no other format should wait for

    try:
        tables = _load(source, cache)
        for name, table in (tables if isinstance(tables, dict) else {None: tables}).items():
            split = split_of(str(name)) if name else None
            for number, row in enumerate(_checked(source, table).cast_column("image", datasets.Image(decode=False))):
                yield split, number, row
    except (*_TORN, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the table
        if source.exists():
            raise UserError(f"{source}: not a table that `datasets` can read: {error}") from None
        raise UserError(
            f"{source}: no such file or folder, and the hub gave none of that name: {error}\n"
            "Where the set is gated, accept its terms on its page and log in with `hf auth login`. Without network, pass\n"
            "a downloaded .parquet file, or make a similar set: python -m data_prep nutrition --out DIR --num-images 1000"
        ) from None


def _load(source: Path, cache: Path):
    """A table, or {split: table}."""
    import datasets

    if not source.exists():
        return datasets.load_dataset(str(source))
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return datasets.load_from_disk(source)
    files = sorted(path for path in files_below(source) if path.suffix == ".parquet") if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source} holds neither .parquet files nor a data set saved with save_to_disk.")
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(split_of(file.stem) or "all", []).append(str(file))
    tables = datasets.load_dataset("parquet", data_files=by_split, streaming=True, cache_dir=str(cache))
    return tables["all"] if list(tables) == ["all"] else tables


def _checked(source: Path, table):
    """The table itself, if it has the columns that are read."""
    import datasets

    columns = list(table.features)
    if missing := [column for column in ("image", "objects") if column not in columns]:
        raise UserError(f"{source} has no column {' nor '.join(missing)}; it has {', '.join(columns)}.")
    if not isinstance(table.features["image"], datasets.Image):
        raise UserError(f"{source}: column image must be of type Image, got {table.features['image']}.")
    return table
