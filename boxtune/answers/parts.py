"""Images that are asked about in several questions: the questions, and one prediction from their responses."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from boxtune.answers.decoding import Decoding
from boxtune.answers.predictions import Part, Prediction
from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions, asked_classes, turns_for
from boxtune.data.records import Record


def questions_of(
    record: Record, classes: Sequence[str], decoding: Decoding, descriptions: Descriptions = NO_DESCRIPTIONS
) -> list[Record]:
    """The record once for each question to ask: its own first question, or one for each class that this question names.

    classes: those that a question about all objects names. descriptions: what the questions about one class say of it.
    """
    asked = asked_classes(record, classes)
    if decoding.ask == "all" or len(asked) < 2:
        return [record]
    return [record | {"messages": turns_for(list(asked), name, descriptions)} for name in asked]


def make_part(question: str, input_size: Sequence[int], text: str, cut: str | None, is_irrelevant: bool) -> Part:
    """cut: "truncated" or "looped" if something else than an end token ended the text."""
    part: Part = {"question": question, "tile": None, "input_size": list(input_size), "text": text}
    if is_irrelevant:
        part["irrelevant"] = True
    if cut is not None:
        part["cut"] = cut
    return part


def merge_parts(parts: list[Part], predictions: list[Prediction]) -> Prediction:
    """One prediction from those of all `parts` of an image: objects by falling score, and the problems of every part."""
    columns = _join([prediction["objects"] for prediction in predictions])
    by_score = sorted(range(len(columns["score"])), key=lambda i: -columns["score"][i])
    first = predictions[0]
    return {
        "id": first["id"],
        "image": first["image"],
        "width": first["width"],
        "height": first["height"],
        "codec": first["codec"],
        "parts": parts,
        "objects": {key: [column[i] for i in by_score] for key, column in columns.items()},
        "problems": list(chain(*(prediction["problems"] for prediction in predictions))),
        "seconds": round(sum(prediction["seconds"] or 0.0 for prediction in predictions), 3),
    }


def _join(objects: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The columns of all parts, one after the other.

    Columns of scorers stay only if every part with objects has them: a server may leave out the probabilities of one response.
    """
    filled = [columns for columns in objects if columns["category"]] or objects
    shared = [key for key in filled[0] if all(key in columns for columns in filled)]
    return {key: list(chain(*(columns[key] for columns in filled))) for key in shared}
