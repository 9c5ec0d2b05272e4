"""Predictions: the responses of a model, read into pixels of the original images. See docs/architecture.md for the format.

prediction_file.py reads and validates predictions.jsonl, prediction_writer.py writes it.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Literal, NotRequired, TypedDict

from boxtune.answers.calibration import calibrate
from boxtune.answers.candidates import SNAPPED, snap
from boxtune.answers.codecs import CODECS, Answer, Codec
from boxtune.answers.confidence import CALIBRATED, DEFAULT, VERIFY, TokenScores, rounded_score, score_objects
from boxtune.answers.noise import without_noise
from boxtune.common.errors import UserError
from boxtune.data.records import CAPTION, Record


class Part(TypedDict):
    """One of several questions about an image, and the response to it.

    `tile` (xyxy in pixels of the image) is the part of the image that was asked about, None for all of it. `irrelevant` stands
    only where the text is the checkpoint's `irrelevant_answer`, `cut` ("truncated" or "looped") only where something else than
    an end token ended it.
    """

    question: str
    tile: list[float] | None
    input_size: list[int]
    text: str
    irrelevant: NotRequired[bool]
    cut: NotRequired[str]


class Prediction(TypedDict):
    """One line of predictions.jsonl.

    `objects` holds parallel lists: "bbox" (of click answers, "point") in pixels of the upright image, "category", "score",
    "caption" (text or None) if the checkpoint was trained with captions, and one "score_NAME" per scorer if the probabilities
    of the tokens were known. `input_size` is (height, width) of the image as the model saw it. `codec`, `input_size` and
    `seconds` are None if they are not known. `irrelevant` stands only in the lines whose text is the checkpoint's
    `irrelevant_answer`. `candidates`, to which labels were snapped, stands only in lines with the problem "snapped". Where
    several questions were asked, `parts` stands in place of `input_size` and `text`. `decoder` stands only where the detection
    head had a part: "head", or "both" for head and text. The text of "head" is empty.
    """

    id: str
    image: str
    width: int
    height: int
    codec: str | None
    candidates: NotRequired[list[str]]
    input_size: NotRequired[list[int] | None]
    text: NotRequired[str]
    parts: NotRequired[list[Part]]
    objects: dict[str, list[Any]]
    problems: list[str]
    seconds: float | None
    irrelevant: NotRequired[bool]
    decoder: NotRequired[str]


# Problems of a response that may lack objects which the model would have found.
INCOMPLETE = {"truncated", "looped", "unparsable", "bad_box", "bad_label", "missing"}

# The keys of a line with one response, and of a line with several.
_ONE_RESPONSE, _SOMETIMES = ("input_size", "text"), ("irrelevant", "candidates", "decoder")
KEYS = tuple(key for key in Prediction.__annotations__ if key not in ("parts", *_SOMETIMES))
KEYS_WITH_PARTS = tuple(key for key in Prediction.__annotations__ if key not in (*_ONE_RESPONSE, *_SOMETIMES))
PART_KEYS = tuple(key for key in Part.__annotations__ if key in Part.__required_keys__)


def response_text(prediction: Prediction) -> str:
    """The response as generated; of several questions, the responses one below the other."""
    return "\n".join(part["text"] for part in prediction["parts"]) if "parts" in prediction else prediction["text"]


def place_column(objects: Mapping[str, object]) -> Literal["bbox", "point"]:
    """The column of `objects` that holds the places: "point" for click answers, "bbox" otherwise."""
    return "point" if "point" in objects else "bbox"


def make_prediction(
    record: Record,
    codec: str,
    input_size: Sequence[int],
    text: str,
    seconds: float,
    tokens: TokenScores | None = None,
    *,
    asked: Sequence[str] = (),
    calibration: Sequence[float] = (),
    noise_label: str = "",
    irrelevant_answer: str = "",
    starts_in_thought: bool = False,
    cut: str | None = None,
    candidates: Sequence[str] = (),
) -> Prediction:
    """The response `text`, read with `codec` into pixels of the record's image.

    input_size: (height, width) of the image as the model saw it.
    tokens: probabilities of the response's tokens. With them, `objects` has a column for every scorer, and `score` is the one
        of confidence.DEFAULT. Without them, every score is 1.0.
    asked: the classes that the question asked for (data/questions.py, asked_classes).
    calibration: [slope, intercept] that turn `score` into the expected share of hits; empty for raw scores.
    noise_label: objects with this label are dropped, and each adds the problem "noise"; empty if there are none.
    irrelevant_answer: a response that equals this text is a clean answer without objects; empty if there is none.
    starts_in_thought: the prompt ended in an open think block.
    cut: what ended the response before its end token, "truncated" or "looped". The text alone may look complete.
    candidates: labels other than these and the asked ones are snapped to them (candidates.py); empty for none.

    Coordinates are rounded to a thousandth of a pixel.
    """
    input_height, input_width = input_size
    is_irrelevant = bool(irrelevant_answer) and text == irrelevant_answer
    answer = Answer()
    if not is_irrelevant:
        image_size, size = (record["height"], record["width"]), (input_height, input_width)
        answer = CODECS[codec].decode(text, image_size, size, asked, starts_in_thought)
    if candidates:
        answer = snap(answer, candidates, {*asked, noise_label})
    # The scores need the noise objects: the score of an object must not contain the probabilities of noise before it.
    scores = {} if tokens is None else score_objects(text, answer.places, tokens)
    if noise_label:
        kept = [label != noise_label for label in answer.labels]
        scores = {name: list(compress(column, kept)) for name, column in scores.items()}
        answer = without_noise(answer, noise_label)
    prediction: Prediction = {
        "id": record["id"],
        "image": record["image"],
        "width": record["width"],
        "height": record["height"],
        "codec": codec,
        "input_size": list(input_size),
        "text": text,
        "objects": _object_columns(answer, CODECS[codec], scores, calibration),
        "problems": answer.problems + ([cut] if cut is not None and cut not in answer.problems else []),
        "seconds": round(seconds, 3),
    }
    if is_irrelevant:
        prediction["irrelevant"] = True
    if SNAPPED in prediction["problems"]:
        prediction["candidates"] = list(candidates)
    return prediction


def _object_columns(
    answer: Answer, codec: Codec, scores: dict[str, list[float]], calibration: Sequence[float]
) -> dict[str, list[Any]]:
    """The parallel lists of a prediction. `scores` has one column per scorer, or is empty if nothing is known."""
    place, values = ("point", answer.points_xy) if codec.is_click else ("bbox", answer.boxes_xyxy)
    columns: dict[str, list[Any]] = {place: [rounded_box(value) for value in values], "category": answer.labels}
    if codec.has_captions:
        columns[CAPTION] = answer.captions
    if not scores:
        return columns | {"score": [1.0] * len(values)}
    if calibration:
        calibrated = [rounded_score(score) for score in calibrate(scores[DEFAULT], calibration)]
        scores = scores | {CALIBRATED: calibrated}
    columns["score"] = scores[CALIBRATED if calibration else DEFAULT]
    return columns | {f"score_{name}": column for name, column in scores.items()}


def rounded_box(values: list[float]) -> list[float]:
    """A box or point rounded to three decimals, except a box so thin that it would collapse."""
    rounded = [round(value, 3) for value in values]
    collapses = len(values) == 4 and (rounded[0] >= rounded[2] or rounded[1] >= rounded[3])
    return list(values) if collapses else rounded


def empty_prediction(record: Record, like: Prediction | None) -> Prediction:
    """Stands for a missing prediction: no objects. `like` is another prediction of the run, which decides the columns."""
    place = place_column(like["objects"]) if like else "bbox"
    captions: dict[str, list[Any]] = {CAPTION: []} if like and CAPTION in like["objects"] else {}
    objects = {place: [], "category": [], **captions, "score": []}
    return without_text(record, like["codec"] if like else None, None, objects, ["missing"]) | {"seconds": None}


def without_text(
    record: Record,
    codec: str | None,
    input_size: Sequence[int] | None,
    objects: dict[str, list[Any]],
    problems: list[str],
) -> Prediction:
    """A prediction that was not read from a response, such as that of a detection head."""
    return {
        "id": record["id"],
        "image": record["image"],
        "width": record["width"],
        "height": record["height"],
        "codec": codec,
        "input_size": None if input_size is None else list(input_size),
        "text": "",
        "objects": objects,
        "problems": problems,
        "seconds": 0.0,
    }


def with_score(predictions: list[Prediction], scorer: str) -> list[Prediction]:
    """The predictions with another scorer's column as `score`. Raises UserError if a prediction does not have that column."""
    column = f"score_{scorer}"
    without = [prediction for prediction in predictions if prediction["objects"].get(column) is None]
    if any(prediction["objects"]["category"] for prediction in without):
        setting = ' with the decode setting "verify": true' if scorer.startswith(VERIFY) else ""
        raise UserError(
            f"--score {scorer}: {len(without)} prediction(s) have no column {column}; predict them again{setting}."
        )
    return [
        prediction | {"objects": prediction["objects"] | {"score": prediction["objects"].get(column, [])}}
        for prediction in predictions
    ]
