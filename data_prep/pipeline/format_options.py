"""Options that only some formats read."""

from boxtune.common.errors import UserError
from data_prep.formats import FORMATS
from data_prep.reading.source import Options

# {field of Options: the formats that read it}
READ_BY = {
    "images": tuple(name for name in FORMATS if name not in ("hf", "openfoodfacts")),
    "image_field": ("labelstudio", "jsonl", "hf"),
    "bbox_field": ("jsonl", "hf"),
    "label_field": ("via", "labelstudio", "jsonl", "hf"),
    "bbox_format": ("jsonl", "hf", "csv"),
}
# Formats in pixels whose layout is fixed, but whose boxes some programs write in thousandths.
_READ_THOUSANDTHS = (
    "voc", "coco", "via", "labelme", "labelme_xml", "cvat", "kitti", "dota", "visdrone", "wider", "supervisely",
)  # fmt: skip


def check_format_options(format_name: str, options: Options) -> None:
    """Raise UserError listing the options that were given although the format does not read them."""
    read_by = dict(READ_BY)
    if options.thousandths:
        read_by["bbox_format"] += _READ_THOUSANDTHS
    unread = [
        f"--{field.replace('_', '-')} is read by {', '.join(formats)}"
        for field, formats in read_by.items()
        if getattr(options, field) is not None and format_name not in formats
    ]
    if unread:
        raise UserError(f"The format {format_name} does not read these options. Leave them out:", unread)
