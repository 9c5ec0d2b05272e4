"""Ask a model the questions of the verifier (boxtune/answers/verifier.py)."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boxtune.answers.verifier import NO, YES
from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.batching.encoder import Encoder
from boxtune.common.errors import UserError
from boxtune.data.records import Record

# How a response to a yes/no question may begin.
YES_WORDS = (YES, "Yes", "yes", "YES")
NO_WORDS = (NO, "No", "no", "NO")


def answer_log_odds(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, questions: list[Record], images: ProcessedImages
) -> list[float]:
    """The log-odds of YES against NO for each question, from one pass over the prompts. `images`: theirs, from the collator.

    The vision tower runs again for each question, also about the same image.
    """
    logits = _first_logits(model, collator, questions, images)
    yes, no = answer_tokens(collator.tokenizer)
    return (logits[:, yes] - logits[:, no]).tolist()


def first_words(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, questions: list[Record], images: ProcessedImages
) -> list[bool | None]:
    """Whether the response to each question begins with yes (True) or no (False); None if with neither."""
    yes, no = ({_first_token(collator.tokenizer, word) for word in spellings} for spellings in (YES_WORDS, NO_WORDS))
    tokens = _first_logits(model, collator, questions, images).argmax(-1).tolist()
    return [True if token in yes - no else False if token in no - yes else None for token in tokens]


def _first_logits(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, questions: list[Record], images: ProcessedImages
) -> torch.Tensor:
    """(B, vocabulary) logits of the first token of the responses."""
    batch, _ = collator.collate_questions(questions, images)
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()


def answer_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the first tokens of YES and NO."""
    return _first_token(tokenizer, YES), _first_token(tokenizer, NO)


def _first_token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    return tokenizer.encode(word, add_special_tokens=False)[0]


def require_answers(encoder: Encoder, setting: str = "verify") -> None:
    """Raises UserError if a response to a question cannot begin with its answer. setting: the decode setting that asks it."""
    if encoder.prompt_opens_thought:
        raise UserError(
            f"{setting}: this model's chat template opens a think block before each response, so the first token is no answer. "
            f"Leave {setting} out of the decode settings in grounding.json."
        )
