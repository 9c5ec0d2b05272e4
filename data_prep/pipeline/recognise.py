"""Which format a source is of: every format looks at a sample of its files and says what it
recognises."""

import csv
import json
import sys
import xml.etree.ElementTree as ElementTree
from itertools import islice
from pathlib import Path
from types import ModuleType

from boxtune.common.errors import UserError
from boxtune.common.files import files_below, is_image
from data_prep.formats.csv_table import delimiter_of
from data_prep.reading.files import is_output
from data_prep.reading.source import Options, Sample

_FILES, _OF_A_KIND = 20_000, 5  # that are listed, and that are opened of each kind
_LISTED = 20  # names beside a path that does not exist


def recognise(source: Path, formats: dict[str, tuple[ModuleType, str]], options: Options) -> str:
    """The name of the one format that fits, which is said with its reason. Raises UserError where none or several do."""
    if not source.exists() and source.parent.name and source.parent.is_dir():  # a path, and no OWNER/NAME of the hub
        there = sorted(path.name for path in source.parent.iterdir() if not path.name.startswith("."))
        listed = ", ".join(there[:_LISTED]) + (", …" if len(there) > _LISTED else "")
        raise UserError(
            f"{source} does not exist ({source.parent}/ holds: {listed or 'nothing'}). Correct the path; a data set of the hub "
            "that is called so is read as hf."
        )
    sample = _sample(source, options)
    reasons = {name: reason for name, (module, _) in formats.items() if (reason := module.recognise(sample))}
    if len(reasons) == 1:
        ((name, reason),) = reasons.items()
        print(f"{source} is taken as {name}: {reason}", file=sys.stderr)
        return name
    if reasons:
        raise UserError(
            f"{source} could be of {len(reasons)} formats. Say which, as in: python -m data_prep {next(iter(reasons))} …",
            [f"{name}: {reason}" for name, reason in reasons.items()],
        )
    if not source.exists():
        raise UserError(f"{source} does not exist, and is no id of the hub, OWNER/NAME.")
    if sample.files and all(map(is_image, sample.files)):
        raise UserError(
            f"{source} holds only pictures. Name the annotations as SOURCE, and these with --images {source}."
        )
    raise UserError(
        f"{source} is of no format that is known: {sample.describe()}. There are:",
        [f"{name}: {text}" for name, (_, text) in formats.items()],
    )


def _sample(source: Path, options: Options) -> Sample:
    """The names of the source's files, and what stands at the head of a few of each kind."""
    if not source.exists():
        return Sample(source)
    files = [source] if source.is_file() else list(islice(files_below(source), _FILES))
    files = [path for path in files if not path.name.startswith(".") and not is_output(path, options)]
    sample = Sample(source, files)
    sample.documents = [(path, _json(path)) for path in sample.of_kind(".json")[:_OF_A_KIND]]
    sample.xml_roots = [(path, _xml_root(path)) for path in sample.of_kind(".xml")[:_OF_A_KIND]]
    sample.csv_heads = [(path, _csv_head(path)) for path in sample.of_kind(".csv")[:_OF_A_KIND]]
    return sample


# What is torn, or of another kind than its ending says, shows nothing that a format could recognise.


def _json(path: Path) -> object | None:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def _xml_root(path: Path) -> str | None:
    try:
        return next(ElementTree.iterparse(path, events=["start"]))[1].tag
    except (OSError, ElementTree.ParseError, LookupError, ValueError, StopIteration):
        return None


def _csv_head(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
        return next(csv.reader([first], delimiter=delimiter_of(first)), [])
    except (OSError, ValueError, csv.Error):
        return []
