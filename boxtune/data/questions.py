"""The wording of questions, and what a conversation of a record asks for."""

from boxtune.data.records import PLACEHOLDER, Record, with_objects

IMAGE = "<image>"
# The neutral question, and other words for it that training may draw (`prompt_variety`). The first is what data_prep asks.
QUESTIONS = (
    "Detect every {} in the image.",
    "Locate each {} in the image.",
    "Find every {} in this picture.",
    "Where is each {} in this picture?",
)


def join_names(names: list[str], word: str = "and") -> str:
    """["a", "b", "c"] → "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def question(classes: list[str], wording: str = QUESTIONS[0]) -> str:
    """The neutral question that asks for every object of `classes`, in one of QUESTIONS; it names the picture first."""
    return IMAGE + wording.format(join_names(classes))


def turns_for(classes: list[str], category: str | None = None) -> list[dict]:
    """The two turns of a record: for all `classes`, or for `category` alone, and the answer that stands for their boxes."""
    return [
        {"role": "user", "content": question([category] if category else classes)},
        {"role": "assistant", "content": f"<boxes:{category}>" if category else "<boxes>"},
    ]


def answer_category(turn: str) -> tuple[bool, str | None]:
    """(whether an assistant turn stands for boxes, the one category it is about or None for all)."""
    match = PLACEHOLDER.fullmatch(turn)
    return (match is not None, match.group(1) if match else None)


def first_question(record: Record) -> str:
    """The record's own first user turn, which evaluation asks."""
    return record["messages"][0]["content"]


def is_standard(record: Record) -> bool:
    """Whether the conversation is one question about all objects, which training may then ask otherwise."""
    return len(record["messages"]) == 2 and record["messages"][1]["content"] == "<boxes>"


def as_asked(record: Record) -> Record:
    """The record with only the objects that its first question asks for, which is what evaluation can score.

    Ignored objects of the class stay ignored; a first answer in plain words asks for none.
    """
    stands_for_boxes, category = answer_category(record["messages"][1]["content"])
    if stands_for_boxes and category is None:
        return record
    kept = [i for i, label in enumerate(record["objects"]["category"]) if stands_for_boxes and label == category]
    return with_objects(record, kept)
