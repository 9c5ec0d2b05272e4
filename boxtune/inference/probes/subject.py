"""The model that probes ask: it detects, answers yes or no, and writes texts; every answer is asked for once and kept."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedModel

from boxtune.answers.predictions import Prediction
from boxtune.answers.responses import Response
from boxtune.batching.collator import DetectionCollator
from boxtune.data.records import Record
from boxtune.inference.batches import in_batches
from boxtune.inference.detector import decoded_answers
from boxtune.inference.generation import generate_batch
from boxtune.inference.probes.tokens import Scored, response_logits, text_logits
from boxtune.inference.verifying import first_words
from boxtune.models.soft_prompt import without_adapter

# Logits of as many texts are in memory at once: those of one text may have 100 million numbers.
AT_ONCE = 4
# What a subject answered, by kind of question and record: kept so that no question is asked twice.
Answers = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class Shown:
    """A record that asks a question, and how the image that it is about is opened."""

    record: Record
    open: Callable[[], Image.Image]

    @property
    def id(self) -> str:
        return self.record["id"]


def has_base(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the base can be asked by turning the adapter off. Trained biases cannot be turned off."""
    return isinstance(model, PeftModel) and all(config.bias == "none" for config in model.peft_config.values())


class Subject:
    """A model with its prompts. With `adapted` False, the base of its adapter, asked in the same way.

    answers: those of an earlier subject of the same weights about the same images, which are not asked for again.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        collator: DetectionCollator,
        batch_size: int,
        adapted: bool = True,
        answers: Answers | None = None,
    ):
        grounding = collator.grounding if adapted else collator.grounding.of_base()
        self.model, self.batch_size, self.adapted = model, batch_size, adapted
        self.collator = DetectionCollator(collator.processor, grounding, collator.data_dir, open_image=self._open)
        self.answers: Answers = {} if answers is None else answers
        self._openers: dict[str, Callable[[], Image.Image]] = {}

    def _open(self, record: Record) -> Image.Image:
        return self._openers[record["id"]]()

    @contextmanager
    def _weights(self) -> Iterator[None]:
        with torch.no_grad(), nullcontext() if self.adapted else without_adapter(self.model):
            yield

    def _missing(self, kind: str, shown: Sequence[Shown]) -> list[Record]:
        """The records without an answer of this kind."""
        self._openers |= {one.id: one.open for one in shown}
        return [one.record for one in shown if (kind, one.id) not in self.answers]

    def detect(self, shown: Sequence[Shown], classes: Sequence[str] | None = None) -> list[Prediction]:
        """A prediction for each record. classes: those that a question about all objects names; by default the trained ones."""
        kind = "boxes" if classes is None else f"boxes of {', '.join(classes)}"
        collator = copy.copy(self.collator)
        if classes is not None:
            collator.grounding = replace(collator.grounding, classes=list(classes))
        if missing := self._missing(kind, shown):
            with self._weights():
                for prediction in decoded_answers(self.model, collator, missing, self.batch_size):
                    self.answers[kind, prediction["id"]] = prediction
        return [self.answers[kind, one.id] for one in shown]

    def say(self, shown: Sequence[Shown]) -> list[bool | None]:
        """Whether the answer to each question begins with yes (True) or no (False); None if with neither."""
        if missing := self._missing("yes or no", shown):
            ask = partial(first_words, self.model, self.collator)
            with self._weights():
                answered = in_batches(self.collator, missing, self.batch_size, ask)
                for record, (said, _) in zip(missing, answered, strict=True):
                    self.answers["yes or no", record["id"]] = said
        return [self.answers["yes or no", one.id] for one in shown]

    def write(self, shown: Sequence[Shown], max_new_tokens: int) -> list[Response]:
        """The text that follows each record's question."""
        if missing := self._missing("text", shown):
            collator = copy.copy(self.collator)
            collator.grounding = replace(collator.grounding, max_new_tokens=max_new_tokens)
            with self._weights():
                written = in_batches(collator, missing, self.batch_size, partial(generate_batch, self.model, collator))
                for record, (response, _) in zip(missing, written, strict=True):
                    self.answers["text", record["id"]] = response
        return [self.answers["text", one.id] for one in shown]

    def logits_of(self, shown: Sequence[Shown], texts: Sequence[str]) -> list[Scored]:
        """The logits of each text as the response to the record's question. They are large, and not kept."""
        self._missing("logits", shown)
        answered = [_with_response(one.record, text) for one, text in zip(shown, texts, strict=True)]
        with self._weights():
            ask = partial(response_logits, self.model, self.collator)
            return [scored for scored, _ in in_batches(self.collator, answered, self.batch_size, ask)]

    def logits_of_text(self, text: str) -> Scored:
        """The logits of a text without image and prompt."""
        with self._weights():
            return text_logits(self.model, self.collator, text)


def _with_response(record: Record, text: str) -> Record:
    question, _ = record["messages"]
    return record | {"messages": [question, {"role": "assistant", "content": text}]}
