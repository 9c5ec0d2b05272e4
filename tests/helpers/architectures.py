"""Published sizes of more models on the Hub (their config.json), without what does not change the list of modules."""

from transformers import (
    PretrainedConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)

from benchmarks.architectures import ARCHITECTURES as HUB_ARCHITECTURES

VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16}
LINEAR_ATTENTION = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}

SMALL_VISION = VISION | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "Qwen3.5-4B": HUB_ARCHITECTURES["Qwen3.5-4B"][1],
    "Qwen3-VL-4B": Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
        vision_config=SMALL_VISION | {"out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]},
        tie_word_embeddings=True,
    ),
    "Qwen3.5-9B": Qwen3_5Config(
        text_config=LINEAR_ATTENTION
        | {
            "vocab_size": 248320,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * 8,
        },
        vision_config=VISION | {"out_hidden_size": 4096},
        tie_word_embeddings=False,
    ),
    "Qwen3.5-35B-A3B": Qwen3_5MoeConfig(
        text_config=LINEAR_ATTENTION
        | {
            "vocab_size": 248320,
            "hidden_size": 2048,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "layer_types": [*["linear_attention"] * 3, "full_attention"] * 10,
        },
        vision_config=VISION | {"out_hidden_size": 2048},
        tie_word_embeddings=False,
    ),
    "Qwen3-VL-30B-A3B": Qwen3VLMoeConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        vision_config=VISION | {"out_hidden_size": 2048, "deepstack_visual_indexes": [8, 16, 24]},
        tie_word_embeddings=False,
    ),
}
