"""Jinja templates, with one set of rules for HTML pages and one for Markdown and YAML."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from boxtune.common.numbers import format_difference, format_number


def page_template(path: Path) -> Template:
    """The template of an HTML page, with the filter `number` and the function `difference`. Undefined variables are errors."""
    # Everything is escaped, because labels, ids and responses come from models and from other people's files.
    environment = _environment(path.parent, autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = format_number
    environment.globals["difference"] = format_difference
    return environment.get_template(path.name)


def text_template(path: Path) -> Template:
    """The template of a text, with the filters `python` (a literal) and `code` (Markdown). Undefined variables are errors."""
    environment = _environment(path.parent, keep_trailing_newline=True)
    environment.filters["python"] = repr
    environment.filters["code"] = _code_span
    return environment.get_template(path.name)


def _code_span(text: str) -> str:
    """A Markdown code span that shows `text` exactly, including backticks."""
    longest_run = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest_run + 1)
    return f"{fence} {text} {fence}" if longest_run else f"{fence}{text}{fence}"


def _environment(folder: Path, **options: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options
    )
