"""Images that have nothing to do with the question: the rule in the system prompt, and the examples that train on it."""

from boxtune.answers.codecs import Codec
from boxtune.data.questions import first_question
from boxtune.data.records import Message, Record
from boxtune.data.unrelated_images import UnrelatedImage

PREFIX = "irrelevant"


def agreed_answer(irrelevant_answer: str, codec: Codec) -> str:
    """The recipe's `irrelevant_answer`, or an empty list in the syntax of the codec if there is none."""
    return irrelevant_answer or codec.encode([], [], (1, 1), (1, 1)).text


def irrelevant_rule(answer: str) -> str:
    """The sentence of the system prompt."""
    return f"If the image has nothing to do with the question, answer {answer}."


def irrelevant_record(
    image: UnrelatedImage, like: Record, number: int, irrelevant_answer: str, sentence: str
) -> Record:
    """The example number `number`: the image, with the first question of the record `like`, which asks for boxes.

    sentence: the format sentence. Questions that are answered in words do not get it by themselves, but evaluation appends it to
    this question, so it is part of the text here.
    """
    question, answer = like["messages"][:2]
    turns: list[Message] = [question, answer]
    if irrelevant_answer:
        asked = f"{first_question(like)} {sentence}".strip()
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": irrelevant_answer}]
    return {
        "id": f"{PREFIX}/{number}/{image.name}",
        "image": image.path,
        "width": image.size[0],
        "height": image.size[1],
        "objects": {"bbox": [], "category": [], "ignore": []},
        "messages": turns,
    }


def is_irrelevant(record: Record) -> bool:
    return record["id"].startswith(f"{PREFIX}/")
