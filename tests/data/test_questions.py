"""The wording of questions, and which objects a conversation asks for."""

import pytest

from boxtune.data.questions import (
    answer_category,
    as_asked,
    asked_classes,
    first_question,
    is_standard,
    join_names,
    named_class,
    question,
    turns_for,
)
from boxtune.data.records import answer_objects, raster_order, stated_areas
from tests.helpers.records import make_record

RECORD = make_record("a", "a.png", 100, 80, [([0, 0, 9, 9], "cat"), ([5, 5, 9, 9], "dog"), ([1, 1, 2, 2], "cat")])


def asking(answer: str) -> dict:
    return RECORD | {"messages": [RECORD["messages"][0], {"role": "assistant", "content": answer}]}


def test_names_are_joined_like_a_sentence():
    assert join_names(["cat"]) == "cat"
    assert join_names(["cat", "dog"]) == "cat and dog"
    assert join_names(["cat", "dog", "cow"], "or") == "cat, dog or cow"
    assert question(["cat", "dog"], "Where is each {} here?") == "<image>Where is each cat and dog here?"


def test_the_class_of_a_question_is_found_with_and_without_its_description():
    classes = ["dog", "dog (wild)", "cat"]
    assert named_class(question(["dog"]), classes) == ["dog"]
    assert named_class(question(["dog (wild)"]), classes) == ["dog (wild)"]
    assert named_class(question(["dog"], descriptions={"dog": "any breed"}), classes) == ["dog"]
    assert named_class(question(["dog (wild)"], descriptions={"dog (wild)": "fox"}), classes) == ["dog (wild)"]
    assert named_class(question(["dog", "cat"]), classes) == named_class("<image>How many?", classes) == []


def test_turns_ask_for_all_classes_or_for_one():
    assert [turn["content"] for turn in turns_for(["cat", "dog"])] == [
        "<image>Detect every cat and dog in the image.",
        "<boxes>",
    ]
    assert turns_for(["cat", "dog"], "dog") == [
        {"role": "user", "content": "<image>Detect every dog in the image."},
        {"role": "assistant", "content": "<boxes:dog>"},
    ]


@pytest.mark.parametrize(
    ("answer", "stands_for_boxes", "category", "asked", "kept"),
    [
        ("<boxes>", True, None, ["cat", "dog"], ["cat", "dog", "cat"]),
        ("<boxes:cat>", True, "cat", ["cat"], ["cat", "cat"]),
        ("<boxes:cow>", True, "cow", ["cow"], []),
        ("Two.", False, None, [], []),
        ("see <boxes>", False, None, [], []),
    ],
)
def test_what_an_answer_stands_for(answer, stands_for_boxes, category, asked, kept):
    record = asking(answer)
    assert answer_category(answer) == (stands_for_boxes, category)
    assert list(asked_classes(record, ["cat", "dog"])) == asked
    assert as_asked(record)["objects"]["category"] == kept
    assert len(as_asked(record)["objects"]["bbox"]) == len(kept)
    assert is_standard(record) == (answer == "<boxes>")


def test_only_one_question_about_all_objects_is_standard():
    assert not is_standard(RECORD | {"messages": RECORD["messages"] * 2})
    assert first_question(RECORD) == "<image>Detect every cat and dog in the image."


def test_an_answer_names_the_objects_that_are_not_ignored():
    record = make_record("a", "a.png", 100, 80, [([0, 0, 9, 9], "cat"), ([5, 5, 9, 9], "dog"), ([1, 1, 2, 2], "cat")])
    record["objects"]["ignore"][0] = True
    assert answer_objects(record) == ([[5, 5, 9, 9], [1, 1, 2, 2]], ["dog", "cat"])
    assert answer_objects(record, "cat") == ([[1, 1, 2, 2]], ["cat"])
    assert answer_objects(record, "cow") == ([], [])


def test_reading_order_is_by_top_and_then_by_left_edge():
    assert raster_order([[5, 5, 9, 9], [7, 0, 8, 9], [0, 5, 1, 6]]) == [1, 2, 0]


def test_areas_are_those_of_the_source_or_unknown():
    assert stated_areas(RECORD["objects"]) == [None] * 3
    assert stated_areas(RECORD["objects"] | {"area": [1.5, None, 3]}) == [1.5, None, 3]
