"""How models of this project generate: greedily, without a repetition penalty, up to the end token."""

from transformers import GenerationConfig


def stop_ids(tokenizer) -> list[int]:
    """The tokens that end an answer."""
    return [tokenizer.eos_token_id, tokenizer.pad_token_id]


def greedy_config(tokenizer, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding. The hub's Qwen2.5-VL configs carry a repetition penalty, which would forbid a second box's digits."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
