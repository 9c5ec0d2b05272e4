"""Ask a model the records' questions in batches; greedy, so the same machine gives the same answers."""

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from boxtune.answers.confidence import TokenScores
from boxtune.answers.predictions import Prediction, make_prediction
from boxtune.answers.repetition import LOOK_EVERY, repeats
from boxtune.batching.collator import DetectionCollator, expected_input_size
from boxtune.common.errors import UserError
from boxtune.data.records import Record
from boxtune.models.generation_config import greedy_config, stop_ids


class _TokenProbabilities(LogitsProcessor):
    """Keeps, of every step, the log-probabilities of the chosen tokens and of the ten digits, and changes nothing.

    `generate` would keep the whole vocabulary of every step: 150,000 numbers a token instead of 11.
    """

    def __init__(self, tokenizer):
        self.digit_ids = tokenizer.convert_tokens_to_ids(list("0123456789"))
        self.chosen: list[torch.Tensor] = []  # (B,) each
        self.digits: list[torch.Tensor] = []  # (B, 10) each

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        normaliser = scores.float().logsumexp(dim=-1, keepdim=True)
        self.chosen.append((scores.max(dim=-1, keepdim=True).values.float() - normaliser)[:, 0])
        self.digits.append(scores[:, self.digit_ids].float() - normaliser)
        return scores

    def rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """((T,), (T, 10)) of every row."""
        chosen, digits = torch.stack(self.chosen, dim=1).cpu().numpy(), torch.stack(self.digits, dim=1).cpu().numpy()
        return list(zip(chosen, digits, strict=True))


class LoopStop(StoppingCriteria):
    """Ends rows that repeat themselves (boxtune/answers/repetition.py) and marks them in `looped`."""

    def __init__(self, prompt_length: int, rows: int, stops: set[int]):
        self.prompt_length, self.stops = prompt_length, stops
        self.looped = [False] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_) -> torch.BoolTensor:
        if (input_ids.shape[1] - self.prompt_length) % LOOK_EVERY:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        answers = input_ids[:, self.prompt_length :].tolist()
        now = [answer[-1] not in self.stops and repeats(answer) for answer in answers]
        self.looped = [before or found for before, found in zip(self.looped, now, strict=True)]
        return torch.tensor(now, device=input_ids.device)


def token_spans(tokenizer, ids: list[int]) -> tuple[str, np.ndarray]:
    """(text, (T, 2) where each token stands in it). Tokens that share a character stand in the same place."""
    pieces = tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=False)
    text, spans, first = "", [], 0
    for i in range(len(ids)):
        piece = pieces[i] if first == i else tokenizer.decode(ids[first : i + 1], skip_special_tokens=False)
        # Part of a character decodes to the sign for what cannot be read; the next tokens complete it.
        if piece.endswith("\ufffd") and i + 1 < len(ids):
            continue
        spans += [(len(text), len(text) + len(piece))] * (i + 1 - first)
        text, first = text + piece, i + 1
    return text, np.array(spans, dtype=int).reshape(-1, 2)


def read_answer(
    tokenizer, ids: list[int], log_probs: np.ndarray, digits: np.ndarray, stops: set[int]
) -> tuple[str, TokenScores, bool]:
    """(the text up to its end token, one of `stops`, its tokens' scores, whether there was an end token).

    Special tokens are kept: Qwen2-VL's boxes are made of them.
    """
    length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text, spans = token_spans(tokenizer, ids[:length])
    return text, TokenScores(spans, log_probs[:length], digits[:length]), length < len(ids)


@torch.no_grad()  # and no inference mode: between two steps of training, what the model caches must stay usable
def generate_answers(
    model, collator: DetectionCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """The answer to every record's question.

    The largest pictures come first: padding is least, and what does not fit the memory fails in the first batch. Then, and
    for all that follows, the batch is halved.
    """
    tokenizer, grounding = collator.tokenizer, collator.grounding
    config = greedy_config(tokenizer, grounding.max_new_tokens)

    def area(record: Record) -> int:
        height, width = expected_input_size(collator.processor, (record["height"], record["width"]))
        return height * width

    ordered = sorted(records, key=lambda record: (-area(record), record["id"]))
    stops = set(stop_ids(tokenizer))
    start = 0
    while start < len(ordered):
        rows = ordered[start : start + batch_size]
        began = time.perf_counter()
        batch, sizes = collator.collate_questions(rows)
        prompt_length = batch["input_ids"].shape[1]
        probabilities, loop_stop = _TokenProbabilities(tokenizer), LoopStop(prompt_length, len(rows), stops)
        try:
            output = model.generate(
                **{key: value.to(model.device) for key, value in batch.items()},
                generation_config=config,
                logits_processor=LogitsProcessorList([probabilities]),
                stopping_criteria=StoppingCriteriaList([loop_stop]),
            )
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                raise UserError(f"out of memory with a single image ({error}). Use a larger GPU or NF4.") from None
            batch_size = len(rows) // 2
            tqdm.write(f"out of memory with {len(rows)} images at once; going on with {batch_size}", file=sys.stderr)
            continue
        start += len(rows)
        seconds = (time.perf_counter() - began) / len(rows)
        answers = zip(output[:, prompt_length:].tolist(), probabilities.rows(), loop_stop.looped, strict=True)
        for record, size, (ids, scores, looped) in zip(rows, sizes, answers, strict=True):
            text, tokens, ended = read_answer(tokenizer, ids, *scores, stops)
            yield make_prediction(
                *(record, grounding.codec, size, text, seconds, tokens),
                calibration=grounding.calibration,
                noise_label=grounding.noise_label,
                cut="looped" if looped else None if ended else "truncated",
            )
