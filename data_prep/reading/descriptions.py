"""The file of --descriptions: what each class means."""

from pathlib import Path

import yaml

from boxtune.common.errors import UserError, shown
from data_prep.reading.text_files import read_text


def read_descriptions(path: Path) -> dict[str, str]:
    """{class: description} of a YAML file, of which JSON is a kind. Raises UserError if it holds anything else."""
    if not path.is_file():
        raise UserError(f"--descriptions {path}: there is no such file.")
    text = read_text(path)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--descriptions {path} is corrupt: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--descriptions {path}: expected NAME: TEXT for each class, got {shown(values)}.")
    pairs = values.items()
    if wrong := [f"{shown(a)}: {shown(b)}" for a, b in pairs if not (isinstance(a, str) and isinstance(b, str))]:
        raise UserError(f"--descriptions {path}: name and text of a class must be texts; quote these:", wrong)
    return values
