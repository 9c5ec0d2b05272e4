"""A `datasets` table such as openfoodfacts/nutrition-table-detection: one row for each image, with
`image`, `width`, `height`, `objects.bbox` = [y_min, x_min, y_max, x_max] in fractions from 0 to
1, and `objects.category_name`.

SOURCE is a Hub id, a Parquet file, a folder of Parquet files named after their splits, or a
`save_to_disk` folder.
"""

from pathlib import Path

from data_prep.formats import hf
from data_prep.reading.source import Options, Sample, Source
from data_prep.reading.table_fields import Fields


def recognise(sample: Sample) -> str | None:
    return "its name, or the column meta.off_image_id" if hf.is_openfoodfacts(sample) else None


def read(source: Path, options: Options) -> Source:
    found = hf.read(source, options, Fields("objects", "bbox", "category_name"))
    found.layout, found.fractions = "yxyx", True
    return found
