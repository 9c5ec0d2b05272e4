"""Text, JSON and XML files of a source."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from boxtune.common.errors import UserError
from boxtune.common.files import check_is_text, compression_problem
from data_prep.reading.encodings import guess_encoding
from data_prep.reading.source import Unreadable

# XML of the LabelMe web tool: a root like VOC's, but objects have polygons.
LABELME_XML = "annotation of LabelMe"
LABELME_XML_TAGS = ("polygon", "sourceAnnotation")
_HEAD = 4096  # bytes in which a file of two-byte characters shows itself


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises UserError if it is not UTF-8."""
    check_is_text(path)
    if fault := encoding_fault(path):
        raise UserError(fault)
    return path.read_text(encoding="utf-8-sig")


def encoding_fault(path: Path) -> str | None:
    """Why a file is not UTF-8 text, with the encoding that it probably has; None if it is."""
    if problem := compression_problem(path):
        return problem
    content = path.read_bytes()
    try:
        content.decode("utf-8")
        if not content.startswith(b"\0") and b"\0" not in content[:_HEAD]:
            return None
        line = 1
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    encoding = guess_encoding(content)
    known = f"it looks like {encoding}" if encoding else "its encoding is unknown"
    command = f", for example: iconv -f {encoding or 'ENCODING'} -t UTF-8 {path.name} > new{path.suffix}"
    return f"{path}: not UTF-8 text (line {line}); {known}. Save the file as UTF-8{command}"


def read_json(path: Path) -> object:
    """The value in a JSON file. Raises UserError with line and column if it is not valid JSON."""
    value = parse_json(read_text(path))
    if isinstance(value, Unreadable):
        raise UserError(f"{path}: {value.reason}. The file is corrupt or has another format.")
    return value


def parse_json(text: str) -> object | Unreadable:
    """The value of a JSON text."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"not JSON: {error}")
    return value


def read_xml(path: Path, root: str) -> ElementTree.Element | Unreadable:
    """The root element of an XML file, which must have the tag `root`."""
    if problem := compression_problem(path):
        return Unreadable(problem)
    try:
        tree = ElementTree.parse(path).getroot()
    # LookupError and ValueError: encodings that the XML parser does not know.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return Unreadable(encoding_fault(path) or f"{path}: not XML: {error}")
    if tree.tag != root:
        return Unreadable(f"{path}: the root element is <{tree.tag}>, expected <{root}>")
    return tree
