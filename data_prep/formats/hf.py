"""Any object detection table of `datasets`: a hub id, a Parquet file, a folder of Parquet files
named after their splits, or a `save_to_disk` folder.

Which columns hold the picture, the boxes and the classes, and how the boxes are written, is
told from the table and said; --image-field, --bbox-field, --label-field and --bbox-format say
it instead.
"""

import os
import re
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import files_below
from data_prep.reading.files import safe_name, stated_size, suffix_of
from data_prep.reading.names import split_of
from data_prep.reading.source import Item, Options, Sample, Source, plain
from data_prep.reading.spool import Spool
from data_prep.reading.table_fields import Fields, choose_fields, read_objects

# What `datasets` and Arrow raise on torn files.
_TORN = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)
_PEEKED = 50  # rows that fields are guessed from


def recognise(sample: Sample) -> str | None:
    if is_openfoodfacts(sample):
        return None
    if not sample.source.exists():
        return "an id of the hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(sample.source)) else None
    saved = [path for path in sample.files if path.name in {"dataset_dict.json", "state.json"}]
    return next((f"{path} is of a table of `datasets`" for path in [*saved, *sample.of_kind(".parquet")]), None)


def is_openfoodfacts(sample: Sample) -> bool:
    """Whether a source is the table that has a format of its own: by its name on the hub, or its columns."""
    if not sample.source.exists():
        return str(sample.source).startswith("openfoodfacts/nutrition-table-detection")
    import pyarrow.parquet

    for path in sample.of_kind(".parquet")[:1]:
        try:
            schema = pyarrow.parquet.read_schema(path)
        except (OSError, ValueError):
            return False  # torn, which the reader will say
        return "meta" in schema.names and "off_image_id" in str(schema.field("meta").type)
    return False


def read(source: Path, options: Options, fields: Fields | None = None) -> Source:
    """Every row as an item, its pictures written to `options.scratch`. Without `fields` they are chosen, and said."""
    found = Source(Spool(options.scratch), layout=options.bbox_format, fractions=None)
    rows, names_taken = _rows(source, options), set()
    known: list[str] | None = None  # of the schema that the last row had
    head = list(islice(rows, _PEEKED))
    fields = fields or choose_fields([row for _, _, row, _ in head], source, options)
    for split, number, row, features in chain(head, rows):
        if fields.parent and fields.parent not in features:
            raise UserError(f"{source} has no column {fields.parent}; it has {', '.join(features)}.")
        names = _class_names(features, fields)
        objects = read_objects(row, fields, names, found.warnings)
        if fault := _image_fault(row["image"]) or (objects if isinstance(objects, str) else None):
            found.errors.append(f"{source}: {split or 'table'} row {number}: {fault}")
            continue
        if names and names != known:
            found.classes += [name for name in names if name not in found.classes]
            known = names
        name, place = _write_image(row, number, options.scratch / "table" / f"{len(found.items)}")
        if (split, name) in names_taken:  # a picture's file may be called as another's is, in another folder
            name = f"{number:06d}_{name}"
        names_taken.add((split, name))
        used = {"image", "image_id", "width", "height", fields.parent, fields.bbox, fields.label}
        extra = plain({key: value for key, value in row.items() if key not in used})
        size = stated_size(row.get("width"), row.get("height"))
        found.items.append(Item(name, str(place), objects, split, size, extra))
    return found


def _image_fault(image: dict | None) -> str | None:
    if image is None or (image["bytes"] is None and not os.path.isfile(image["path"] or "")):
        return f"no image ({image['path']})" if image and image["path"] else "no image"
    return None


def _write_image(row: dict, number: int, place: Path) -> tuple[str, Path]:
    """(the picture's name: its id, its file's, or the row's number; where its bytes now lie)."""
    image = row["image"]
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    named = row.get("image_id")
    if named is None or named == "":
        named = Path(image["path"]).stem if image["path"] else f"{number:06d}"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    return safe_name(str(named)) + suffix_of(content), place


def _class_names(features, fields: Fields) -> list[str] | None:
    """The names of numbered classes, where the table's schema holds them."""
    import datasets

    feature = features.get(fields.parent) if fields.parent else features
    while feature is not None and not isinstance(feature, datasets.ClassLabel):
        if isinstance(feature, datasets.List | datasets.LargeList):
            feature = feature.feature
        else:
            feature = feature.get(fields.label) if isinstance(feature, dict) else None
    return feature.names if feature is not None else None


def _rows(source: Path, options: Options) -> Iterator[tuple[str | None, int, dict, dict]]:
    """(split, row number, row, the table's features), with pictures still encoded as `image`: {"bytes", "path"}."""
    import datasets  # half a second, which no other format should wait for

    try:
        tables = _load(source, options.scratch / "cache")
        for name, table in (tables if isinstance(tables, dict) else {None: tables}).items():
            split = split_of(str(name)) if name else None
            table = _with_image(source, table, options.image_field)
            for number, row in enumerate(table.cast_column("image", datasets.Image(decode=False))):
                yield split, number, row, table.features
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
        folder = split_of(file.parent.name) if file.parent != source else None
        by_split.setdefault(split_of(file.stem) or folder or "all", []).append(str(file))
    tables = datasets.load_dataset("parquet", data_files=by_split, streaming=True, cache_dir=str(cache))
    return tables["all"] if list(tables) == ["all"] else tables


def _is_image_column(feature) -> bool:
    """Whether a column holds pictures: as `datasets` has them, or as pandas writes them to Parquet."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _with_image(source: Path, table, image_field: str | None):
    """The table, its column of pictures called `image`."""

    pictures = [name for name, feature in table.features.items() if _is_image_column(feature)]
    chosen = image_field or ("image" if "image" in pictures or len(pictures) != 1 else pictures[0])
    if chosen not in table.features:
        raise UserError(f"{source} has no column {chosen}; it has {', '.join(table.features)}. See --image-field.")
    if chosen not in pictures:
        raise UserError(
            f"{source}: column {chosen} must be of type Image, got {table.features[chosen]}. "
            "Cast it: table.cast_column(NAME, datasets.Image())."
        )
    if others := [name for name in pictures if name != chosen]:
        print(f"{source}: further columns of pictures are left out: {', '.join(others)}", file=sys.stderr)
        table = table.remove_columns(others)
    if chosen != "image" and "image" in table.features:
        table = table.rename_column("image", "source_image")
    return table if chosen == "image" else table.rename_column(chosen, "image")
