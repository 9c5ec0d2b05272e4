"""The templates of report.html and comparison.html, one set of rules for both."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from boxtune.score_table import format_difference, format_number


def page_template(name: str) -> Template:
    """boxtune/NAME, with the filter `number` and the function `difference`; a key that is not there is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # labels, ids and answers are whatever a model or a stranger's file says
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = format_number
    environment.globals["difference"] = format_difference
    return environment.get_template(name)
