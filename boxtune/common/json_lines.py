"""JSONL files: one JSON value per line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxtune.common.files import check_is_text


@dataclass(frozen=True)
class BadLine:
    """A line that does not hold JSON."""

    problem: str


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that is not blank. The value is a BadLine where the line is not JSON.

    Raises UserError if the file is no text file.
    """
    check_is_text(path)
    with open(path, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, BadLine(f"not JSON ({error})")


def to_json_line(value: Any) -> str:
    """One line of a JSONL file. Raises ValueError where `value` holds NaN or infinity, which are not JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
