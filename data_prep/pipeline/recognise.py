"""Detect the format of SOURCE from a sample of its files, print it with the reason, and convert
the data.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from itertools import islice
from pathlib import Path
from types import ModuleType

from boxtune.common.errors import UserError
from boxtune.common.files import compression_problem, files_below, is_image
from boxtune.common.problems import join_names
from data_prep.reading.annotation_files import is_output
from data_prep.reading.csv_files import first_cells
from data_prep.reading.source import Options, Sample, Unreadable
from data_prep.reading.text_files import LABELME_XML, LABELME_XML_TAGS, encoding_fault, parse_json

_MAX_FILES = 100_000  # listed in total
_MAX_OF_FOLDER = 1000  # files of a kind and folder that the formats see
_MAX_OPENED = 5  # of each kind
_TEXTS = (".json", ".csv", ".xml", ".yaml", ".yml", ".txt")


def recognise(source: Path, formats: dict[str, tuple[ModuleType, str]], options: Options) -> str:
    """The name of the only format that fits, which is printed with its reason.

    `formats` is {name: (module, description)}. Raises UserError if no format fits, or several do.
    """
    _check_typing_error(source)
    if source.is_file() and (problem := compression_problem(source)):
        raise UserError(problem)
    sample = _sample(source, options)
    reasons = {name: reason for name, (module, _) in formats.items() if (reason := module.recognise(sample))}
    if len(reasons) == 1:
        ((name, reason),) = reasons.items()
        print(f"{source} is read as {name}: {reason}", file=sys.stderr)
        return name
    if reasons:
        raise UserError(
            f"{source} fits {len(reasons)} formats. Choose one, for example: python -m data_prep {next(iter(reasons))} …",
            [f"{name}: {reason}" for name, reason in reasons.items()],
        )
    if not source.exists():
        raise UserError(f"SOURCE {source} does not exist. (A dataset on the Hub is written OWNER/NAME.)")
    if sample.files and all(map(is_image, sample.files)):
        raise UserError(
            f"{source} contains only images. Name the annotations as SOURCE, and the images with --images {source}."
        )
    if not sample.files:
        raise UserError(f"{source} contains no files. (Hidden files and the output folder do not count.)")
    if sample.faults:
        raise UserError(f"The format of {source} was not recognized. These files cannot be read:", sample.faults)
    corrupt = f" {len(sample.corrupt)} are corrupt, such as {sample.corrupt[0]}." if sample.corrupt else ""
    raise UserError(
        f"The format of {source} was not recognized. It contains {sample.describe()}.{corrupt} Name the format, for example: "
        f"python -m data_prep {next(iter(formats))} …. The formats are:",
        [f"{name}: {description}" for name, (_, description) in formats.items()],
    )


def _check_typing_error(source: Path) -> None:
    """Raise UserError for a missing file in an existing folder: a misspelled path, and not OWNER/NAME on the Hub."""
    if source.exists() or not source.parent.name or not source.parent.is_dir():
        return
    names = sorted(path.name for path in source.parent.iterdir() if not path.name.startswith("."))
    listed = join_names(names)
    raise UserError(
        f"{source} does not exist ({source.parent}/ contains: {listed or 'nothing'}). Correct the path. To load a "
        "dataset of this name from the Hub, use the format hf."
    )


def _sample(source: Path, options: Options) -> Sample:
    """The names of the source's files, and the content or the head of a few of each kind."""
    if not source.exists():
        return Sample(source)
    files = [source] if source.is_file() else list(islice(files_below(source), _MAX_FILES))
    files = [path for path in files if not path.name.startswith(".") and not is_output(path, options)]
    in_folder: Counter[tuple[Path, str]] = Counter()
    sample = Sample(source, kinds=Counter(path.suffix.lower() or path.name for path in files))
    for path in files:
        in_folder[path.parent, path.suffix] += 1
        if in_folder[path.parent, path.suffix] <= _MAX_OF_FOLDER:
            sample.files.append(path)
    for suffix in _TEXTS:
        faults = map(_text_fault, sample.of_kind(suffix)[:_MAX_OPENED])
        sample.faults += [fault for fault in faults if fault]
    sample.documents = [(path, _json(path)) for path in sample.of_kind(".json")[:_MAX_OPENED]]
    sample.xml_roots = [(path, _xml_root(path)) for path in sample.of_kind(".xml")[:_MAX_OPENED]]
    sample.corrupt += [f"{path}: {value.reason}" for path, value in sample.documents if isinstance(value, Unreadable)]
    sample.corrupt += [f"{path}: not XML" for path, root in sample.xml_roots if root is None]
    sample.csv_heads = [(path, first_cells(path)) for path in sample.of_kind(".csv")[:_MAX_OPENED]]
    return sample


# Files that are corrupt, or not what their extension says, contribute nothing that a format could recognize. The reader
# of the chosen format reports them.


def _text_fault(path: Path) -> str | None:
    """Why a file of annotations cannot be read although its format may be known; None if it can."""
    try:
        if path.suffix.lower() != ".xml":
            return encoding_fault(path)
        return None if _xml_root(path) else encoding_fault(path)
    except OSError:
        return None


def _json(path: Path) -> object:
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        return Unreadable(f"not JSON: {error}")


def _xml_root(path: Path) -> str | None:
    """The tag of the root; LABELME_XML for that tool's files, whose root is called like that of VOC."""
    root = None
    try:
        for _, node in ElementTree.iterparse(path, events=["start"]):
            root = root or str(node.tag)
            if root != "annotation" or node.tag == "bndbox":
                return root
            if node.tag in LABELME_XML_TAGS:
                return LABELME_XML
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        return root
    return root
