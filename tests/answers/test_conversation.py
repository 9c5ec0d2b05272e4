"""How a record becomes a conversation."""

import pytest

from boxtune.answers.codecs import CODECS
from boxtune.answers.conversation import as_text, format_sentence, render, render_question, user_content
from tests.helpers.records import make_record

CODEC = CODECS["qwen3_vl"]
RECORD = make_record("a", "a.png", 1000, 500, [([0, 0, 100, 50], "cat"), ([500, 250, 500.2, 400], "dog")])
RECORD["messages"] += [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Where is the cat?"},
    {"role": "assistant", "content": "<boxes:cat>"},
]
CAT = '{"bbox_2d": [0, 0, 100, 100], "label": "cat"}'


def texts(turns: list[dict]) -> list[tuple[str, str]]:
    return [(turn["role"], as_text(turn["content"])) for turn in turns]


def test_placeholders_become_boxes_and_their_questions_get_the_format_sentence():
    turns, widened = render(RECORD, CODEC, (448, 896), "Be brief.", "In JSON.")
    assert texts(turns) == [
        ("system", "Be brief."),
        ("user", "<image>Detect every cat and dog in the image. In JSON."),
        ("assistant", f'[{CAT}, {{"bbox_2d": [500, 500, 501, 800], "label": "dog"}}]'),
        ("user", "How many?"),
        ("assistant", "Two."),
        ("user", "Where is the cat? In JSON."),
        ("assistant", f"[{CAT}]"),
    ]
    assert widened == 1
    assert turns[1]["content"][0] == {"type": "image"}
    assert texts(render(RECORD, CODEC, (448, 896), "", "")[0])[0][0] == "user", "no empty system turn"


def test_evaluation_asks_the_first_question():
    asked = ("user", "<image>Detect every cat and dog in the image. In JSON.")
    assert texts(render_question(RECORD, "Be brief.", "In JSON.")) == [("system", "Be brief."), asked]
    assert texts(render_question(RECORD, "", "In JSON.")) == [asked]
    plain = RECORD | {"messages": [{"role": "user", "content": "How many?<image>"}, *RECORD["messages"][3:]]}
    assert texts(render_question(plain, "", "In JSON.")) == [("user", "How many?<image>")]


def test_a_record_may_end_with_a_question():
    record = RECORD | {"messages": RECORD["messages"][:1]}
    assert texts(render(record, CODEC, (448, 896), "", "In JSON.")[0]) == [
        ("user", "<image>Detect every cat and dog in the image.")
    ]


@pytest.mark.parametrize("text", ["<image>a", "a<image>", "a<image>b<image>", "a", "<image>"])
def test_user_content_has_an_image_at_each_mark(text):
    content = user_content(text, "")
    assert as_text(content) == text
    assert [part["type"] for part in content].count("image") == text.count("<image>")
    assert all(part.get("text") != "" for part in content)


def test_each_syntax_has_its_sentence():
    assert format_sentence(CODECS["qwen2_vl"]) == "Give each object's name and bounding box, or None."
    assert '"bbox_2d"' in format_sentence(CODECS["qwen2_5_vl"]) and "<click>" in format_sentence(
        CODECS["qwen3_vl_click"]
    )
