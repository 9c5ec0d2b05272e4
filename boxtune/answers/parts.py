"""Images that are asked about in several questions: the questions, and one prediction from their responses."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from boxtune.answers.decoding import Decoding
from boxtune.answers.predictions import Part, Prediction, rounded_box
from boxtune.answers.tile_merging import MERGED, merge_views
from boxtune.data.questions import NO_DESCRIPTIONS, Descriptions, asked_classes, turns_for
from boxtune.data.records import Record, with_objects
from boxtune.data.tiles import views_of


def questions_of(
    record: Record, classes: Sequence[str], decoding: Decoding, descriptions: Descriptions = NO_DESCRIPTIONS
) -> list[Record]:
    """One record for each question to ask, those about the same tile or whole image one after the other.

    A question is the record's own first one or, with `ask: each`, one for each class that this question names. It is asked
    about the whole image and, with `tiles`, about every tile. Records of tiles have no objects.

    classes: those that a question about all objects names. descriptions: what the questions about one class say of it.
    """
    asked = asked_classes(record, classes)
    views = views_of(with_objects(record, []), decoding.tiles) if decoding.tiles and asked else [record]
    if decoding.ask == "all" or len(asked) < 2:
        return views
    return [view | {"messages": turns_for(list(asked), name, descriptions)} for view in views for name in asked]


def make_part(
    question: str, tile: list[float] | None, input_size: Sequence[int], text: str, cut: str | None, is_irrelevant: bool
) -> Part:
    """tile: None for the whole image. cut: "truncated" or "looped" if something else than an end token ended the text."""
    part: Part = {"question": question, "tile": tile, "input_size": list(input_size), "text": text}
    if is_irrelevant:
        part["irrelevant"] = True
    if cut is not None:
        part["cut"] = cut
    return part


def merge_parts(record: Record, parts: list[Part], predictions: list[Prediction]) -> Prediction:
    """One prediction of the record from those of all `parts` of its image: objects by falling score, all problems.

    The boxes of `predictions` are in pixels of the tile of their part. Boxes of one object in several tiles become one.
    """
    columns = _join([_moved(part, prediction["objects"]) for part, prediction in zip(parts, predictions, strict=True)])
    problems = list(chain(*(prediction["problems"] for prediction in predictions)))
    if any(part["tile"] is not None for part in parts):
        whole = [0.0, 0.0, float(record["width"]), float(record["height"])]
        shown = [part["tile"] or whole for part in parts]
        counts = [len(prediction["objects"]["category"]) for prediction in predictions]
        views = list(chain(*([view] * count for view, count in zip(shown, counts, strict=True))))
        merged = merge_views(columns, views, whole)
        problems += [MERGED] * (len(views) - len(merged["category"]))
        columns = merged
    by_score = sorted(range(len(columns["score"])), key=lambda i: -columns["score"][i])
    merged_prediction: Prediction = {
        "id": record["id"],
        "image": record["image"],
        "width": record["width"],
        "height": record["height"],
        "codec": predictions[0]["codec"],
        "parts": parts,
        "objects": {key: [column[i] for i in by_score] for key, column in columns.items()},
        "problems": problems,
        "seconds": round(sum(prediction["seconds"] or 0.0 for prediction in predictions), 3),
    }
    if snapped := [prediction["candidates"] for prediction in predictions if "candidates" in prediction]:
        merged_prediction["candidates"] = snapped[0]
    return merged_prediction


def _moved(part: Part, objects: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The objects of a part in pixels of the whole image."""
    if part["tile"] is None:
        return objects
    x, y = part["tile"][:2]
    return objects | {"bbox": [rounded_box([x0 + x, y0 + y, x1 + x, y1 + y]) for x0, y0, x1, y1 in objects["bbox"]]}


def _join(objects: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """The columns of all parts, one after the other.

    Columns of scorers stay only if every part with objects has them: a server may leave out the probabilities of one response.
    """
    filled = [columns for columns in objects if columns["category"]] or objects
    shared = [key for key in filled[0] if all(key in columns for columns in filled)]
    return {key: list(chain(*(columns[key] for columns in filled))) for key in shared}
