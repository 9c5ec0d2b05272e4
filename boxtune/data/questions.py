"""The wording of questions, and what the conversation of a record asks for."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from boxtune.data.records import PLACEHOLDER, Message, Record, with_objects

# Stands for the image in a question.
IMAGE = "<image>"

# Wordings of the neutral question. data_prep writes the first; training may draw any of them (`prompt_variety`).
QUESTIONS = (
    "Detect every {} in the image.",
    "Locate each {} in the image.",
    "Find every {} in this picture.",
    "Where is each {} in this picture?",
)


# {class: what it means}; a class may have none.
Descriptions = Mapping[str, str]
NO_DESCRIPTIONS: Descriptions = MappingProxyType({})


def join_names(names: list[str], word: str = "and") -> str:
    """["a", "b", "c"] → "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def question(classes: list[str], wording: str = QUESTIONS[0], descriptions: Descriptions = NO_DESCRIPTIONS) -> str:
    """The neutral question for every object of `classes`, in one of the wordings QUESTIONS. It starts with the image.

    A description follows its class: "Detect every RBC (red blood cell) and WBC in the image." Answers hold the name alone.
    """
    names = [f"{name} ({descriptions[name]})" if name in descriptions else name for name in classes]
    return IMAGE + wording.format(join_names(names))


def named_class(text: str, classes: Sequence[str]) -> list[str]:
    """[the class that a question about one class names, whatever its description]; empty if it is none of `classes`."""
    found = [name for name in classes if text == question([name])]
    start, end = question(["{}"]).split("{}")
    described = [name for name in classes if text.startswith(f"{start}{name} (") and text.endswith(f"){end}")]
    return (found or sorted(described, key=len))[-1:]


def turns_for(
    classes: list[str], category: str | None = None, descriptions: Descriptions = NO_DESCRIPTIONS
) -> list[Message]:
    """A question for all `classes`, or for `category` alone, and the placeholder of its answer."""
    asked = [category] if category else classes
    return [
        {"role": "user", "content": question(asked, descriptions=descriptions)},
        {"role": "assistant", "content": f"<boxes:{category}>" if category else "<boxes>"},
    ]


def answer_category(turn: str) -> tuple[bool, str | None]:
    """(whether an assistant turn stands for boxes, the category it is limited to or None)."""
    match = PLACEHOLDER.fullmatch(turn)
    return (match is not None, match.group(1) if match else None)


def answers_are_boxes(record: Record) -> bool:
    """Whether every answer stands for boxes, so that it stays right when objects move or are cut off."""
    return all(answer_category(turn["content"])[0] for turn in record["messages"] if turn["role"] == "assistant")


def first_question(record: Record) -> str:
    """The first user turn of the record. It is the question that evaluation asks."""
    return record["messages"][0]["content"]


def asked_classes(record: Record, classes: Sequence[str]) -> Sequence[str]:
    """The classes that the record's first question asks for; none if its answer is plain text.

    classes: those that a question about all objects asks for.
    """
    stands_for_boxes, category = answer_category(record["messages"][1]["content"])
    if category is not None:
        return [category]
    return classes if stands_for_boxes else []


def is_standard(record: Record) -> bool:
    """Whether the conversation is one question about all objects, so that training may ask another one instead."""
    return len(record["messages"]) == 2 and record["messages"][1]["content"] == "<boxes>"


def as_asked(record: Record) -> Record:
    """The record with only the objects that its first question asks for; evaluation scores these.

    If the first answer is plain text, no object is left. Ignored objects stay ignored.
    """
    stands_for_boxes, category = answer_category(record["messages"][1]["content"])
    if stands_for_boxes and category is None:
        return record
    kept = [i for i, label in enumerate(record["objects"]["category"]) if stands_for_boxes and label == category]
    return with_objects(record, kept)
