"""Tables that a benchmark writes into a page, between two marks."""

from collections.abc import Iterable
from pathlib import Path

from boxtune.common.files import write_whole


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def replace_table(path: Path, text: str, name: str = "table") -> None:
    """Put `text` between the marks with this name on the page, in place of what is there."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text(encoding="utf-8")
    before, after = page.split(start)[0], page.split(end)[1]
    write_whole(path, f"{before}{start}\n\n{text}\n\n{end}{after}")
