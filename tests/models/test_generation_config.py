"""Greedy decoding: every value that a model's own config could set otherwise is stated."""

from types import SimpleNamespace

from boxtune.models.generation_config import greedy_config, stop_ids


def test_decoding_is_greedy_without_a_repetition_penalty_and_ends_at_either_token():
    """Values that are not set come from the model's own config, and those of Qwen2.5-VL on the Hub have a penalty."""
    tokenizer = SimpleNamespace(eos_token_id=5, pad_token_id=7)
    config = greedy_config(tokenizer, 12)
    assert stop_ids(tokenizer) == config.eos_token_id == [5, 7]
    assert (config.do_sample, config.num_beams, config.repetition_penalty) == (False, 1, 1.0)
    assert (config.max_new_tokens, config.pad_token_id) == (12, 7)
