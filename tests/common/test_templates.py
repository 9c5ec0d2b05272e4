"""The rules of all templates: what is escaped, and how values look."""

import jinja2
import pytest

from boxtune.common.templates import page_template, text_template


def rendered(tmp_path, template, text: str, **values) -> str:
    (tmp_path / "t").write_text(text)
    return template(tmp_path / "t").render(**values)


def test_a_page_escapes_values_and_formats_numbers(tmp_path):
    page = "<p>{{ label }} {{ 0.12345|number }} {{ difference(1, 3) }}</p>"
    assert rendered(tmp_path, page_template, page, label="<b>&") == "<p>&lt;b&gt;&amp; 0.123 +2</p>"
    assert rendered(tmp_path, page_template, "{{ {'a': [1, '</script>']}|tojson }}") == (
        '{"a":[1,"\\u003c/script\\u003e"]}'
    )
    with pytest.raises(ValueError, match="JSON"):
        rendered(tmp_path, page_template, "{{ value|tojson }}", value=float("nan"))


def test_a_text_is_not_escaped_and_keeps_its_last_line_break(tmp_path):
    assert rendered(tmp_path, text_template, "{{ a }}\n", a="<b>") == "<b>\n"
    assert rendered(tmp_path, text_template, "{{ a|python }}", a="it's") == '"it\'s"'


@pytest.mark.parametrize(("text", "span"), [("a", "`a`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("", "``")])
def test_a_code_span_shows_backticks(tmp_path, text, span):
    assert rendered(tmp_path, text_template, "{{ a|code }}", a=text) == span


@pytest.mark.parametrize("template", [page_template, text_template])
def test_lines_of_logic_leave_no_space_and_unknown_names_are_errors(tmp_path, template):
    assert rendered(tmp_path, template, "a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"
    with pytest.raises(jinja2.UndefinedError):
        rendered(tmp_path, template, "{{ unknown }}")
