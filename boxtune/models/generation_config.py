"""How every model of this project generates: greedily, up to an end token."""

from transformers import GenerationConfig, PreTrainedTokenizerBase


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokens that end a response."""
    return [tokenizer.eos_token_id, tokenizer.pad_token_id]


def greedy_config(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding.

    No repetition penalty is set explicitly: the Qwen2.5-VL configs on the Hub carry one, and it would suppress digits that an
    earlier box already used. That of the decode settings is applied in boxtune/inference/generation.py.
    """
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
