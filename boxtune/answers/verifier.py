"""The verifier: after a response, one yes/no question about each of its boxes. The answers become the scores.

The score of a box is σ(l), where l are the log-odds of the first token of YES against that of NO. Nothing is generated: one
pass over the prompt gives both. docs/confidence.md tells when to use it.
"""

import re
from collections.abc import Callable, Sequence

from boxtune.answers.calibration import calibrate, sigmoid
from boxtune.answers.codecs import Codec
from boxtune.answers.confidence import VERIFY, VERIFY_CALIBRATED, rounded_score
from boxtune.answers.predictions import Prediction
from boxtune.data.questions import IMAGE
from boxtune.data.records import Message, Record

YES, NO = "Yes.", "No."
RAW, CALIBRATED = f"score_{VERIFY}", f"score_{VERIFY_CALIBRATED}"  # columns of `objects`
# The log-odds of the answers to questions of `verifier_questions`.
Verify = Callable[[list[Record]], Sequence[float]]

# A label is whatever the model wrote. In a question, these would stand for an image or end the turn.
_MARKERS = re.compile(rf"{IMAGE}|<\|\w+\|>")


def box_question(name: str, coordinates: list[int]) -> str:
    """coordinates: [x0, y0, x1, y1] as the family counts them."""
    return f"Is the {name} in the box {coordinates}?"


def verifier_questions(record: Record, prediction: Prediction, codec: Codec) -> list[Record]:
    """The record once for each box of the prediction, with the question about this box. `prediction`: of one response."""
    height, width = prediction["input_size"] or (0, 0)
    image_size = (record["height"], record["width"])
    questions = []
    for box_xyxy, label in zip(prediction["objects"]["bbox"], prediction["objects"]["category"], strict=True):
        coordinates, _ = codec.frame.box_to_steps(box_xyxy, image_size, (height, width))
        asked = IMAGE + box_question(_MARKERS.sub(" ", label), coordinates)
        turns: list[Message] = [{"role": "user", "content": asked}, {"role": "assistant", "content": YES}]
        questions.append(record | {"messages": turns})
    return questions


def with_verified_scores(prediction: Prediction, log_odds: Sequence[float], calibration: Sequence[float]) -> Prediction:
    """The prediction with the verifier's scores as `score`, from the log-odds of its boxes. calibration: see rank_by_verifier."""
    scores = [rounded_score(score) for score in sigmoid(log_odds)]
    return rank_by_verifier(prediction | {"objects": prediction["objects"] | {RAW: scores}}, calibration)


def rank_by_verifier(prediction: Prediction, calibration: Sequence[float]) -> Prediction:
    """The prediction with the scores that the verifier gave it as `score`.

    calibration: [slope, intercept] that turn them into the expected share of hits; empty for raw scores.
    """
    columns = {key: column for key, column in prediction["objects"].items() if key != CALIBRATED}
    columns["score"] = columns[RAW]
    if calibration:
        columns["score"] = columns[CALIBRATED] = [
            rounded_score(score) for score in calibrate(columns[RAW], calibration)
        ]
    return {**prediction, "objects": columns}
