"""The gate: before detection, one yes/no question whether the image shows what is asked for. Other images get no boxes.

It is a decode setting: the least probability of yes. docs/guardrails.md tells when to use it.
"""

import math
from collections.abc import Sequence

from boxtune.answers.codecs import CODECS
from boxtune.answers.predictions import Prediction, without_text
from boxtune.answers.verifier import YES
from boxtune.data.questions import IMAGE, join_names
from boxtune.data.records import Message, Record, with_objects

# The problem of a prediction whose image did not pass. Its response is empty.
GATED = "gated"
# At most this share of the validation images with objects is lost to the gate.
LOST = 0.02


def gate_question(record: Record, classes: Sequence[str]) -> Record:
    """The record with the question whether its image shows one of the `classes`."""
    asked = f"{IMAGE}Is there a {join_names(list(classes), 'or')} in the image?"
    turns: list[Message] = [{"role": "user", "content": asked}, {"role": "assistant", "content": YES}]
    return with_objects(record, []) | {"messages": turns}


def gated_prediction(record: Record, codec: str, input_size: Sequence[int]) -> Prediction:
    """The prediction of an image that did not pass: no objects."""
    place = "point" if CODECS[codec].is_click else "bbox"
    return without_text(record, codec, input_size, {place: [], "category": [], "score": []}, [GATED])


def choose_gate(own: Sequence[float], unrelated: Sequence[float]) -> float:
    """The threshold for these probabilities of yes: the highest that loses at most LOST of the user's own images.

    0, which is no gate, if it would keep out none of the unrelated images, or if there are no own ones.
    """
    if not own:
        return 0.0
    threshold = sorted(own)[math.floor(LOST * len(own))]
    threshold = math.floor(threshold * 1e6) / 1e6
    return threshold if any(probability < threshold for probability in unrelated) else 0.0
