"""Ask a model the questions of the verifier (boxtune/answers/verifier.py)."""

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from boxtune.answers.verifier import NO, YES
from boxtune.batching.collator import DetectionCollator, ProcessedImages
from boxtune.batching.encoder import Encoder
from boxtune.common.errors import UserError
from boxtune.data.records import Record


def answer_log_odds(
    model: PreTrainedModel | PeftModel, collator: DetectionCollator, questions: list[Record], images: ProcessedImages
) -> list[float]:
    """The log-odds of YES against NO for each question, from one pass over the prompts. `images`: theirs, from the collator.

    The vision tower runs again for each question, also about the same image.
    """
    batch, _ = collator.collate_questions(questions, images)
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()  # (B, vocabulary)
    yes, no = answer_tokens(collator.tokenizer)
    return (logits[:, yes] - logits[:, no]).tolist()


def answer_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The ids of the first tokens of YES and NO."""
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in (YES, NO))
    return yes, no


def require_answers(encoder: Encoder) -> None:
    """Raises UserError if a response to a question cannot begin with its answer."""
    if encoder.prompt_opens_thought:
        raise UserError(
            "verify: this model's chat template opens a think block before each response, so the first token is no answer. Turn "
            'the setting off: "verify": false in grounding.json.'
        )
