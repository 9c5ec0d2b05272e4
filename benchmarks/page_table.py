"""Tables that a benchmark writes into a page, between two marks."""

from collections.abc import Iterable
from pathlib import Path

from boxtune.common.files import write_whole

START, END = "<!-- table -->", "<!-- end of table -->"


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def replace_table(path: Path, text: str) -> None:
    """Put `text` between the marks of the page, in place of what is there."""
    page = path.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    write_whole(path, f"{before}{START}\n\n{text}\n\n{END}{after}")
