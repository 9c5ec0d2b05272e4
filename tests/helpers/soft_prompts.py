"""Tiny models with spare rows of the vocabulary, whose head may be tied to the embedding matrix, for tests of the soft prompt."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from assets.build_tiny_model import build_model, build_processor, build_tokenizer

SPARE_ROWS = 32


def small_model(family: str, tokenizer: PreTrainedTokenizerBase, tied: bool) -> PreTrainedModel:
    """A model with random float32 weights."""
    model = build_model(family, tokenizer, hidden=64, layers=2, vision_layers=3, spare_rows=SPARE_ROWS)
    if not tied:
        return model
    config = model.config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config)


def build_base(family: str, tied: bool, out: Path) -> Path:
    """Write a model of `small_model` with its processor, as a Hub model is stored."""
    tokenizer = build_tokenizer()
    model = small_model(family, tokenizer, tied).to(torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(out)
    build_processor(family, tokenizer).save_pretrained(out)
    return out
