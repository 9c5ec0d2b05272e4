"""Ask a model the records' questions in batches; greedy, so the same machine gives the same answers."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from boxtune.collator import GroundingCollator, expected_input_size
from boxtune.errors import UserError
from boxtune.predictions import Prediction, PredictionWriter, fingerprint, make_prediction
from boxtune.records import Record


def greedy_config(tokenizer, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding. The hub's Qwen2.5-VL configs carry a repetition penalty, which would forbid a second box's digits."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )


def answer_text(tokenizer, ids: list[int]) -> tuple[str, bool]:
    """(the text up to its end token, whether there was one). Special tokens are kept: Qwen2-VL's boxes are made of them."""
    stops = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:length], skip_special_tokens=False), length < len(ids)


@torch.no_grad()  # and no inference mode: between two steps of training, what the model caches must stay usable
def generate_answers(
    model, collator: GroundingCollator, records: list[Record], batch_size: int
) -> Iterator[Prediction]:
    """The answer to every record's question.

    The largest pictures come first: padding is least, and what does not fit the memory fails in the first batch.
    """
    tokenizer, codec = collator.tokenizer, collator.grounding.codec
    config = greedy_config(tokenizer, collator.grounding.max_new_tokens)

    def area(record: Record) -> int:
        height, width = expected_input_size(collator.processor, (record["height"], record["width"]))
        return height * width

    ordered = sorted(records, key=lambda record: (-area(record), record["id"]))
    for start in range(0, len(ordered), batch_size):
        rows = ordered[start : start + batch_size]
        began = time.perf_counter()
        batch, sizes = collator.collate_questions(rows)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        try:
            output = model.generate(**batch, generation_config=config)
        except torch.OutOfMemoryError as error:
            raise UserError(f"out of memory with {len(rows)} images at once ({error}). Lower --batch-size.") from None
        seconds = (time.perf_counter() - began) / len(rows)
        for record, size, ids in zip(rows, sizes, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            text, ended = answer_text(tokenizer, ids)
            prediction = make_prediction(record, codec, size, text, seconds)
            if not ended and "truncated" not in prediction["problems"]:
                # Cut by the token limit between two objects, where the text alone looks whole.
                prediction["problems"].append("truncated")
            yield prediction


def predict(
    model,
    collator: GroundingCollator,
    records: list[Record],
    path: Path,
    *,
    settings: dict,
    batch_size: int = 8,
    description: str = "generating",
) -> list[Prediction]:
    """Write predictions.jsonl at `path`, going on where an interrupted call with the same `settings` stopped."""
    with PredictionWriter(path, fingerprint(settings)) as writer:
        missing = [record for record in records if record["id"] not in writer.done]
        bar = tqdm(total=len(records), initial=len(records) - len(missing), desc=description, unit="image")
        for prediction in generate_answers(model, collator, missing, batch_size):
            writer.add(prediction)
            bar.update()
        bar.close()
        writer.finish([record["id"] for record in records])
        return [writer.done[record["id"]] for record in records]
