"""Text, JSON and XML files of a source."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from boxtune.common.errors import UserError
from data_prep.reading.source import Unreadable


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises UserError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). Save the file as UTF-8.") from None


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
    try:
        tree = ElementTree.parse(path).getroot()
    # LookupError and ValueError: encodings that the XML parser does not know.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return Unreadable(f"{path}: not XML: {error}")
    if tree.tag != root:
        return Unreadable(f"{path}: the root element is <{tree.tag}>, expected <{root}>")
    return tree
