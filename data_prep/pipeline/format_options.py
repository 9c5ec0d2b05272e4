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
    "bbox_format": ("jsonl", "hf"),
}


def check_format_options(format_name: str, options: Options) -> None:
    """Raise UserError listing the options that were given although the format does not read them."""
    unread = [
        f"--{field.replace('_', '-')} is read by {', '.join(formats)}"
        for field, formats in READ_BY.items()
        if getattr(options, field) is not None and format_name not in formats
    ]
    if unread:
        raise UserError(f"The format {format_name} does not read these options. Leave them out:", unread)
