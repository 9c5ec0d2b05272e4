"""The model's probabilities for the tokens of a given text."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.data.records import Record

# (T, vocabulary) float32 logits before each token, and the (T,) tokens.
Scored = tuple[torch.Tensor, torch.Tensor]


def response_logits(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, records: list[Record], images: ProcessedImages
) -> list[Scored]:
    """For each record, of the tokens of its response, the content of its second turn. `images`: theirs, from the collator."""
    features, sizes = images
    tokens = [_tokens(collator.tokenizer, record["messages"][1]["content"]) for record in records]
    prompts = [collator.encoder.encode_question(record, size) for record, size in zip(records, sizes, strict=True)]
    rows = [prompt + ids for prompt, ids in zip(prompts, tokens, strict=True)]
    return _last_logits(model, collator.batch(rows, features, side="left"), tokens)


def text_logits(model: PreTrainedModel | PeftModel, collator: DetectionCollator, text: str) -> Scored:
    """Of the tokens of a text without image and prompt, except the first."""
    tokens = _tokens(collator.tokenizer, text)
    [scored] = _last_logits(model, collator.batch([tokens], {}, side="left"), [tokens[1:]])
    return scored


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _last_logits(
    model: PreTrainedModel | PeftModel, batch: dict[str, torch.Tensor], tokens: list[list[int]]
) -> list[Scored]:
    """Of the `tokens` with which the left-padded rows of the batch end."""
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    logits = model(**inputs, use_cache=False, logits_to_keep=max(map(len, tokens)) + 1).logits
    # The logits at a position are those of the next token.
    return [(row[-len(ids) - 1 : -1].float().cpu(), torch.tensor(ids)) for row, ids in zip(logits, tokens, strict=True)]
