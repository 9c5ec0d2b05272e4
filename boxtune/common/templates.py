"""Templates: one set of rules for pages, one for Markdown and YAML."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from boxtune.common.numbers import format_difference, format_number


def page_template(path: Path) -> Template:
    """The template of a page, with the filter `number` and the function `difference`; a key that is not there is an error."""
    # Labels, ids and answers are whatever a model or a stranger's file says.
    environment = _environment(path.parent, autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = format_number
    environment.globals["difference"] = format_difference
    return environment.get_template(path.name)


def text_template(path: Path) -> Template:
    """The template of a text, with the filters `python` and `code` (Markdown's); a key that is not there is an error."""
    environment = _environment(path.parent, keep_trailing_newline=True)
    environment.filters["python"] = repr
    environment.filters["code"] = _code_span
    return environment.get_template(path.name)


def _code_span(text: str) -> str:
    """A name as Markdown shows it letter by letter, whatever it holds."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _environment(folder: Path, **options) -> Environment:
    rules = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(folder), **rules, **options)
