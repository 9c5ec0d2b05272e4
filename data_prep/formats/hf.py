"""Any object detection table of `datasets`: a Hub id, a Parquet file, a folder of Parquet files
named after their splits, or a `save_to_disk` folder.

The columns of images, boxes and classes, and how the boxes are written, are inferred from the
table and printed; --image-field, --bbox-field, --label-field and --bbox-format override this.
"""

import os
import re
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from boxtune.common.errors import UserError
from boxtune.common.files import files_below
from boxtune.common.problems import join_names
from data_prep.reading.embedded_images import image_suffix
from data_prep.reading.names import safe_name
from data_prep.reading.source import Item, Options, Row, Sample, Source, Unreadable, plain
from data_prep.reading.split_names import split_of
from data_prep.reading.spool import Spool
from data_prep.reading.table_fields import Fields, choose_fields, read_objects
from data_prep.reading.values import stated_size

# What `datasets` and Arrow raise on corrupt files.
_CORRUPT = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)
_SAVED = ("dataset_dict.json", "state.json")  # files that save_to_disk writes
_PEEKED = 50  # rows that the fields are inferred from


class _TableRow(NamedTuple):
    """A row of a table; `values["image"]` is the encoded image: {"bytes", "path"}. `features` is the schema of the table."""

    split: str | None
    number: int
    values: dict[str, Any]
    features: Any


def recognise(sample: Sample) -> str | None:
    if is_openfoodfacts(sample):
        return None
    if not sample.source.exists():
        return "an id of the Hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(sample.source)) else None
    saved = [path for path in sample.files if path.name in _SAVED]
    return next((f"{path} is a table of `datasets`" for path in [*saved, *sample.of_kind(".parquet")]), None)


def is_openfoodfacts(sample: Sample) -> bool:
    """Whether a source is the table for which there is a separate format, by its Hub id or its columns."""
    if not sample.source.exists():
        return str(sample.source).startswith("openfoodfacts/nutrition-table-detection")
    import pyarrow.parquet

    for path in sample.of_kind(".parquet")[:1]:
        try:
            schema = pyarrow.parquet.read_schema(path)
        except (OSError, ValueError):
            return False  # a corrupt file, which `read` reports
        return "meta" in schema.names and "off_image_id" in str(schema.field("meta").type)
    return False


def read(source: Path, options: Options, fields: Fields | None = None) -> Source:
    """Every row as an item, with its image written to `options.scratch`. Without `fields` they are inferred and printed."""
    found = Source(Spool(options.scratch), layout=options.bbox_format, fractions=None)
    rows = _rows(source, options)
    head = list(islice(rows, _PEEKED))
    fields = fields or choose_fields([row.values for row in head], source, options)
    names_taken: set[tuple[str | None, str]] = set()
    known_classes: list[str] = []  # those of the previous row's schema
    for row in chain(head, rows):
        if fields.parent and fields.parent not in row.features:
            raise UserError(f"{source} has no column {fields.parent}; it has {join_names(row.features)}.")
        where = f"{source}: {row.split or 'table'} row {row.number}"
        class_names = _class_names(row.features, fields)
        objects = read_objects(row.values, fields, class_names, found.warnings)
        if fault := _image_fault(row.values["image"]):
            found.errors.append(f"{where}: {fault}")
            continue
        if isinstance(objects, Unreadable):
            found.errors.append(f"{where}: {objects.reason}")
            continue
        if class_names and class_names != known_classes:
            found.classes += [name for name in class_names if name not in found.classes]
            known_classes = class_names
        item = _make_item(row, fields, objects, options.scratch / "table" / f"{len(found.items)}")
        if (item.split, item.name) in names_taken:  # images in different folders may have the same file name
            item.name = f"{row.number:06d}_{item.name}"
        names_taken.add((item.split, item.name))
        found.items.append(item)
    return found


def _image_fault(image: dict[str, Any] | None) -> str | None:
    """Why a row has no image, or None."""
    if image is None or (image["bytes"] is None and not os.path.isfile(image["path"] or "")):
        return f"no image ({image['path']})" if image and image["path"] else "no image"
    return None


def _make_item(row: _TableRow, fields: Fields, objects: list[Row], image_path: Path) -> Item:
    """The item of a row, whose image is written to `image_path`. Its name is the image's id, or else its file name, or else
    the row's number."""
    values, image = row.values, row.values["image"]
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    image_path.parent.mkdir(exist_ok=True)
    image_path.write_bytes(content)
    name = values.get("image_id")
    if name is None or name == "":
        name = Path(image["path"]).stem if image["path"] else f"{row.number:06d}"
    used = {"image", "image_id", "width", "height", fields.parent, fields.bbox, fields.label}
    return Item(
        name=safe_name(str(name)) + image_suffix(content),
        image_path=str(image_path),
        rows=objects,
        split=row.split,
        size=stated_size(values.get("width"), values.get("height")),
        extra=plain({key: value for key, value in values.items() if key not in used}),
    )


def _class_names(features: Any, fields: Fields) -> list[str] | None:
    """The names of numbered classes, if the table's schema has them."""
    import datasets

    feature = features.get(fields.parent) if fields.parent else features
    while feature is not None and not isinstance(feature, datasets.ClassLabel):
        if isinstance(feature, datasets.List | datasets.LargeList):
            feature = feature.feature
        else:
            feature = feature.get(fields.label) if isinstance(feature, dict) else None
    return list(feature.names) if feature is not None else None


# ---- loading ---------------------------------------------------------------------------------------------------------


def _rows(source: Path, options: Options) -> Iterator[_TableRow]:
    import datasets  # takes half a second, which other formats should not wait for

    try:
        tables = _load(source, options.scratch / "cache")
        for name, table in (tables if isinstance(tables, dict) else {None: tables}).items():
            split = split_of(str(name)) if name else None
            table = _with_image(source, table, options.image_field)
            for number, values in enumerate(table.cast_column("image", datasets.Image(decode=False))):
                yield _TableRow(split, number, values, table.features)
    except (*_CORRUPT, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, not of the table
        if source.exists():
            raise UserError(f"{source}: not a table that `datasets` can read: {error}") from None
        raise UserError(
            f"{source}: no such file or folder, and the Hub returned no dataset of that name: {error}\n"
            "If the dataset is gated, accept its terms on its page and log in with `hf auth login`. Without network, pass a\n"
            "downloaded .parquet file, or generate a similar dataset: python -m data_prep nutrition --out DIR --num-images 1000"
        ) from None


def _load(source: Path, cache: Path) -> Any:
    """A table, or {split: table}."""
    import datasets

    if not source.exists():
        return datasets.load_dataset(str(source))
    names = [path for path in files_below(source) if path.name in _SAVED] if source.is_dir() else []
    if names:  # the nearest one: the file of all splits is above those of each split
        return datasets.load_from_disk(min(names, key=lambda path: len(path.parts)).parent)
    files = sorted(path for path in files_below(source) if path.suffix == ".parquet") if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source} contains neither .parquet files nor a dataset saved with save_to_disk.")
    by_split: dict[str, list[str]] = {}
    for file in files:
        folder = split_of(file.parent.name) if file.parent != source else None
        by_split.setdefault(split_of(file.stem) or folder or "all", []).append(str(file))
    tables = datasets.load_dataset("parquet", data_files=by_split, streaming=True, cache_dir=str(cache))
    return tables["all"] if list(tables) == ["all"] else tables


def _with_image(source: Path, table: Any, image_field: str | None) -> Any:
    """The table, with its column of images renamed to `image`. Raises UserError if there is no such column."""
    columns = [name for name, feature in table.features.items() if _is_image_column(feature)]
    chosen = image_field or ("image" if "image" in columns or len(columns) != 1 else columns[0])
    if chosen not in table.features:
        raise UserError(f"{source} has no column {chosen}; it has {join_names(table.features)}. See --image-field.")
    if chosen not in columns:
        raise UserError(
            f"{source}: column {chosen} must be of type Image, got {table.features[chosen]}. "
            "Cast it: table.cast_column(NAME, datasets.Image())."
        )
    if others := [name for name in columns if name != chosen]:
        print(f"{source}: further image columns are left out: {join_names(others)}", file=sys.stderr)
        table = table.remove_columns(others)
    if chosen == "image":
        return table
    if "image" in table.features:
        table = table.rename_column("image", "source_image")
    return table.rename_column(chosen, "image")


def _is_image_column(feature: Any) -> bool:
    """Whether a column holds images, as `datasets` stores them or as pandas writes them to Parquet."""
    import datasets

    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
