"""Ask the gate's question (boxtune/answers/gate.py), and detect only in the images that pass."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from peft import PeftModel
from transformers import PreTrainedModel

from boxtune.answers.gate import gate_question, gated_prediction
from boxtune.answers.predictions import Prediction
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import expected_input_size
from boxtune.data.questions import asked_classes
from boxtune.data.records import Record
from boxtune.inference.batches import in_batches
from boxtune.inference.verifying import answer_log_odds, require_answers

Ask = Callable[[PreTrainedModel | PeftModel, DetectionCollator, list[Record], int], Iterable[Prediction]]


def gate_probabilities(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> list[float]:
    """The probability of yes, against no, that each record's image shows one of the classes that its question asks for."""
    require_answers(collator.encoder, "gate")
    questions = [gate_question(record, asked_classes(record, collator.grounding.classes)) for record in records]
    answered = in_batches(collator, questions, batch_size, partial(answer_log_odds, model, collator))
    return [1 / (1 + math.exp(-max(-500.0, min(500.0, odds)))) for odds, _ in answered]


def behind_gate(
    ask: Ask, model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """A prediction for each record: `ask`'s for those whose image passes or whose question is not about boxes."""
    classes, least = collator.grounding.classes, collator.grounding.decoding.gate
    guarded = [record for record in records if asked_classes(record, classes)]
    probabilities = gate_probabilities(model, collator, guarded, batch_size)
    refused = {record["id"] for record, value in zip(guarded, probabilities, strict=True) if value < least}
    for record in guarded:
        if record["id"] in refused:
            size = expected_input_size(collator.processor, (record["height"], record["width"]))
            yield gated_prediction(record, collator.grounding.codec, size)
    yield from ask(model, collator, [record for record in records if record["id"] not in refused], batch_size)
