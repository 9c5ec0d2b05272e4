"""The Hub's architectures in their published sizes, written with random weights. Nothing is downloaded.

Qwen3.5-4B's own config.json was not at hand. Its language model has the sizes in the config.json of Chandra OCR 2, a fine-tuned
copy, and those of the page apxml.com/models/qwen35-4b; its vision tower is timm's `qwen3_vit_306m.qwen3_5_4b`, which was made
from the published weights (huggingface/pytorch-image-models#2765).
"""

import copy
from pathlib import Path

import torch
from transformers import (
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from assets.build_tiny_model import build_processor, build_tokenizer

MAX_PIXELS = 1_003_520  # 1,280 tokens of 28 × 28
# Sizes from the Hub's config.json files. The ids of special tokens come from the small tokenizer.
ARCHITECTURES = {
    "Qwen2-VL-7B": (
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(
            text_config={
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            },
            vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584},
            tie_word_embeddings=False,
        ),
    ),
    "Qwen2.5-VL-3B": (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
                "tie_word_embeddings": True,
            },
            vision_config={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            tie_word_embeddings=True,
        ),
    ),
    "Qwen3-VL-8B": (
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig(
            text_config={
                "vocab_size": 151936,
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [24, 20, 20],
                    "rope_theta": 5e6,
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "patch_size": 16,
                "out_hidden_size": 4096,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            tie_word_embeddings=False,
        ),
    ),
    "Qwen3.5-4B": (
        Qwen3_5ForConditionalGeneration,
        Qwen3_5Config(
            text_config={
                "vocab_size": 248320,
                "hidden_size": 2560,
                "intermediate_size": 9216,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "layer_types": [*["linear_attention"] * 3, "full_attention"] * 8,
                "linear_conv_kernel_dim": 4,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "tie_word_embeddings": True,
            },
            vision_config={
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "patch_size": 16,
                "out_hidden_size": 2560,
            },
            tie_word_embeddings=True,
        ),
    ),
}


def write_model(model_class, config: PretrainedConfig, folder: Path, device: str, max_pixels: int = MAX_PIXELS) -> None:
    """Write the architecture with random bf16 weights, and a processor with the small tokenizer, in the layout of a Hub model."""
    tokenizer, config = build_tokenizer(), copy.deepcopy(config)
    for key, token in (
        *(("image_token_id", "<|image_pad|>"), ("video_token_id", "<|video_pad|>")),
        *(("vision_start_token_id", "<|vision_start|>"), ("vision_end_token_id", "<|vision_end|>")),
    ):
        setattr(config, key, tokenizer.convert_tokens_to_ids(token))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model_class(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    build_processor(config.model_type, tokenizer, max_pixels).save_pretrained(folder)
