"""The model's probabilities for the tokens of a given text."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from boxtune.batching.collator import DetectionCollator
from boxtune.data.records import Record


def response_logits(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, record: Record, text: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """((T, vocabulary) float32 logits before each token of `text`, (T,) its tokens), as the response to the record's question."""
    features, sizes = collator.process_images([record])
    prompt = collator.encoder.encode_question(record, sizes[-1])
    tokens = collator.tokenizer(text, add_special_tokens=False)["input_ids"]
    batch = collator.batch([prompt + tokens], features, side="right")
    return _last_logits(model, batch, len(tokens)), torch.tensor(tokens)


def text_logits(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, text: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for the tokens of a text without image and prompt, except the first."""
    tokens = collator.tokenizer(text, add_special_tokens=False)["input_ids"]
    return _last_logits(model, collator.batch([tokens], {}, side="right"), len(tokens) - 1), torch.tensor(tokens[1:])


def _last_logits(
    model: PreTrainedModel | PeftModel, batch: dict[str, torch.Tensor], count: int
) -> torch.Tensor:
    """The logits that predict the last `count` tokens of a batch of one row."""
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    logits = model(**inputs, use_cache=False, logits_to_keep=count + 1).logits
    return logits[0, :count].float().cpu()
