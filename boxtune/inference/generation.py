"""Ask a model the records' questions in batches. Decoding is greedy, so the same machine gives the same responses."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from peft import PeftModel
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from boxtune.answers.confidence import TokenScores
from boxtune.answers.parts import questions_of
from boxtune.answers.predictions import Prediction
from boxtune.answers.repetition import LOOK_EVERY, repeats
from boxtune.answers.responses import Response, read_responses
from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.batching.encoder import expected_input_size
from boxtune.data.records import Record
from boxtune.inference.batches import in_batches
from boxtune.inference.verifying import answer_log_odds, require_answers
from boxtune.models.generation_config import greedy_config, stop_ids


def generate_answers(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """Yield a prediction for every record, the largest images first.

    `batch_size` counts questions: an image takes one row for each class that is asked by itself and each tile.
    """
    grounding = collator.grounding
    if grounding.decoding.verify:
        require_answers(collator.encoder)
    asked = [
        questions_of(record, grounding.classes, grounding.decoding, grounding.descriptions)
        for record in largest_first(records, collator)
    ]
    generate, verify = (partial(answer, model, collator) for answer in (generate_batch, answer_log_odds))
    timed_responses = in_batches(collator, list(chain(*asked)), batch_size, generate)
    for questions in asked:
        responses = [replace(response, seconds=took) for response, took in islice(timed_responses, len(questions))]
        yield read_responses(
            questions,
            responses,
            grounding,
            collator.encoder.prompt_opens_thought,
            verify=lambda rows: [odds for odds, _ in in_batches(collator, rows, batch_size, verify)],
        )


def largest_first(records: list[Record], collator: DetectionCollator) -> list[Record]:
    """The records by area of their resized images, then by id.

    Images of similar size share a batch, which keeps padding short, and a lack of memory shows in the first batch.
    """

    def order(record: Record) -> tuple[int, str]:
        height, width = expected_input_size(collator.processor, (record["height"], record["width"]))
        return -height * width, record["id"]

    return sorted(records, key=order)


def generate_batch(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], images: ProcessedImages
) -> list[Response]:
    """The responses to the questions of `records`, generated in one batch. `images`: theirs, from the collator."""
    tokenizer = collator.tokenizer
    stops = set(stop_ids(tokenizer))
    batch, input_sizes = collator.collate_questions(records, images)
    prompt_length = batch["input_ids"].shape[1]
    probabilities = PenalizedProbabilities(tokenizer, collator.grounding.decoding.repetition_penalty)
    loop_stop = LoopStop(prompt_length, len(records), stops)

    output = model.generate(
        **{key: value.to(model.device) for key, value in batch.items()},
        generation_config=greedy_config(tokenizer, collator.grounding.max_new_tokens),
        logits_processor=LogitsProcessorList([probabilities]),
        stopping_criteria=StoppingCriteriaList([loop_stop]),
    )

    responses = []
    rows = zip(output[:, prompt_length:].tolist(), probabilities.rows(), loop_stop.looped, input_sizes, strict=True)
    for ids, (log_probs, digits), looped, input_size in rows:
        text, tokens, ended = read_answer(tokenizer, ids, log_probs, digits, stops)
        cut = "looped" if looped else None if ended else "truncated"
        responses.append(Response(text, input_size, tokens, cut))
    return responses


class PenalizedProbabilities(LogitsProcessor):
    """Applies the repetition penalty, and keeps the log-probabilities of the chosen token and of the ten digits before it.

    They are kept here because `generate` itself could only keep the whole vocabulary of every step, 150,000 numbers per token
    instead of 11, and because the model's confidence in an object does not depend on which tokens came earlier.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, penalty: float):
        self.digit_ids = tokenizer.convert_tokens_to_ids(list("0123456789"))
        self.pad_id = tokenizer.pad_token_id
        self.penalize = RepetitionPenaltyLogitsProcessor(float(penalty)) if penalty != 1 else None
        self.chosen: list[torch.Tensor] = []  # (B,) each
        self.digits: list[torch.Tensor] = []  # (B, 10) each

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        penalized = self._penalized(input_ids, scores)
        normalizer = scores.float().logsumexp(dim=-1, keepdim=True)
        chosen = scores.gather(-1, penalized.argmax(dim=-1, keepdim=True))
        self.chosen.append((chosen.float() - normalizer)[:, 0])
        self.digits.append(scores[:, self.digit_ids].float() - normalizer)
        return penalized

    def _penalized(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Tokens of the prompt count as repeated too, as in vLLM. The padding of a batch does not."""
        if self.penalize is None:
            return scores
        penalized = self.penalize(input_ids, scores)
        penalized[:, self.pad_id] = scores[:, self.pad_id]
        return penalized

    def rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """((T,), (T, 10)) for every row of the batch."""
        chosen = torch.stack(self.chosen, dim=1).cpu().numpy()
        digits = torch.stack(self.digits, dim=1).cpu().numpy()
        return list(zip(chosen, digits, strict=True))


class LoopStop(StoppingCriteria):
    """Ends rows that repeat themselves (boxtune/answers/repetition.py) and marks them in `looped`."""

    def __init__(self, prompt_length: int, rows: int, stops: set[int]):
        self.prompt_length = prompt_length
        self.stops = stops
        self.looped = [False] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.BoolTensor:
        if (input_ids.shape[1] - self.prompt_length) % LOOK_EVERY:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        answers = input_ids[:, self.prompt_length :].tolist()
        now = [answer[-1] not in self.stops and repeats(answer) for answer in answers]
        self.looped = [before or found for before, found in zip(self.looped, now, strict=True)]
        return torch.tensor(now, device=input_ids.device)


def read_answer(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], log_probs: np.ndarray, digits: np.ndarray, stops: set[int]
) -> tuple[str, TokenScores, bool]:
    """(the text before the first of `stops`, the scores of its tokens, whether one of `stops` ended it).

    log_probs: (T,), digits: (T, 10). Special tokens stay in the text because Qwen2-VL's boxes are made of them.
    """
    length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text, spans = token_spans(tokenizer, ids[:length])
    return text, TokenScores(spans, log_probs[:length], digits[:length]), length < len(ids)


def token_spans(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, np.ndarray]:
    """(text, (T, 2) start and end of each token in it). Tokens that share a character have the same span."""
    pieces = tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=False)
    text, spans, first = "", [], 0
    for i in range(len(ids)):
        piece = pieces[i] if first == i else tokenizer.decode(ids[first : i + 1], skip_special_tokens=False)
        # Part of a character decodes to the replacement character; the next tokens complete it.
        if piece.endswith("\ufffd") and i + 1 < len(ids):
            continue
        spans += [(len(text), len(text) + len(piece))] * (i + 1 - first)
        text, first = text + piece, i + 1
    return text, np.array(spans, dtype=int).reshape(-1, 2)
