"""What a model or a server responded about an image, read into the image's prediction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from boxtune.answers.confidence import TokenScores
from boxtune.answers.grounding import Grounding
from boxtune.answers.parts import make_part, merge_parts
from boxtune.answers.predictions import Prediction, make_prediction
from boxtune.answers.selection import keep_objects
from boxtune.answers.verifier import Verify, verifier_questions, with_verified_scores
from boxtune.data.questions import asked_classes, first_question
from boxtune.data.records import Record
from boxtune.data.tiles import tile_of, whole_of


@dataclass(frozen=True)
class Response:
    """One generated text.

    input_size: (height, width) of the image as the model saw it. tokens: None if their probabilities are unknown. cut:
    "truncated" or "looped" if something else than an end token ended the text; else None. seconds: the time it took.
    """

    text: str
    input_size: tuple[int, int]
    tokens: TokenScores | None
    cut: str | None
    seconds: float = 0.0


def read_responses(
    questions: Sequence[Record],
    responses: Sequence[Response],
    grounding: Grounding,
    starts_in_thought: bool,
    verify: Verify,
) -> Prediction:
    """The prediction of one image, from the response to each of its `questions` (parts.questions_of).

    starts_in_thought: prompts end in an open think block. verify: asks the verifier's questions, if the decode settings say so.
    """
    predictions = [
        make_prediction(
            question,
            grounding.codec,
            response.input_size,
            response.text,
            response.seconds,
            response.tokens,
            asked=asked_classes(question, grounding.classes),
            calibration=grounding.calibration,
            noise_label=grounding.noise_label,
            irrelevant_answer=grounding.irrelevant_answer,
            starts_in_thought=starts_in_thought,
            cut=response.cut,
            candidates=grounding.candidates,
        )
        for question, response in zip(questions, responses, strict=True)
    ]
    if grounding.decoding.verify:
        predictions = [_verified(*row, grounding, verify) for row in zip(questions, predictions, strict=True)]
    if len(predictions) == 1:
        return keep_objects(predictions[0], grounding.decoding)
    parts = [
        make_part(
            question=first_question(question),
            tile=tile_of(question),
            input_size=response.input_size,
            text=response.text,
            cut=response.cut,
            is_irrelevant="irrelevant" in prediction,
        )
        for question, response, prediction in zip(questions, responses, predictions, strict=True)
    ]
    return keep_objects(merge_parts(whole_of(questions[0]), parts, predictions), grounding.decoding)


def _verified(question: Record, prediction: Prediction, grounding: Grounding, verify: Verify) -> Prediction:
    """The prediction with the verifier's scores; its `seconds` include their time."""
    began = time.perf_counter()
    log_odds = verify(verifier_questions(question, prediction, grounding.get_codec()))
    seconds = round((prediction["seconds"] or 0.0) + time.perf_counter() - began, 3)
    return with_verified_scores(prediction, log_odds, grounding.verify_calibration) | {"seconds": seconds}
