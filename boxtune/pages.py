"""Templates: one set of rules for report.html and comparison.html, one for Markdown and YAML."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from boxtune.score_table import format_difference, format_number


def page_template(name: str) -> Template:
    """boxtune/NAME, with the filter `number` and the function `difference`; a key that is not there is an error."""
    # Labels, ids and answers are whatever a model or a stranger's file says.
    environment = _environment(Path(__file__).parent, autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = format_number
    environment.globals["difference"] = format_difference
    return environment.get_template(name)


def text_template(path: Path) -> Template:
    """The template of a text at `path`, with the filter `python`; a key that is not there is an error."""
    environment = _environment(path.parent, keep_trailing_newline=True)
    environment.filters["python"] = repr
    return environment.get_template(path.name)


def _environment(folder: Path, **options) -> Environment:
    rules = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FileSystemLoader(folder), **rules, **options)
