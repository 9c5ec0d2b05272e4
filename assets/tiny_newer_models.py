"""Tiny models with random weights of the families that build_tiny_model.py hands over: Qwen3.5 and the mixtures of experts."""

from transformers import (
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

CLASSES = {
    "qwen3_5": (Qwen3_5Config, Qwen3_5ForConditionalGeneration),
    "qwen3_5_moe": (Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration),
    "qwen3_vl_moe": (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
}


def build_newer_model(family: str, text: dict, vision: dict, rope: dict, tokens: dict) -> PreTrainedModel:
    """`text`, `vision`, `rope` and `tokens`: the values of a tiny Qwen3-VL, which are changed where the family differs."""
    text = text | {"head_dim": 32, "rope_parameters": rope}
    if family != "qwen3_vl_moe":
        text |= _linear_attention(text["hidden_size"], text["num_hidden_layers"])
        vision = {key: value for key, value in vision.items() if key != "deepstack_visual_indexes"}
    if family != "qwen3_5":
        # No expert weight is square, so that one that is transposed by mistake does not fit.
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
        text |= {"shared_expert_intermediate_size": 48} if family == "qwen3_5_moe" else {}
        del text["intermediate_size"]
    config_class, model_class = CLASSES[family]
    return model_class(config_class(text_config=text, vision_config=vision, **tokens))


def _linear_attention(hidden: int, layers: int) -> dict:
    """Every second layer is a gated delta net, so that two layers have both kinds. RoPE turns the whole head."""
    return {
        "layer_types": [("linear_attention", "full_attention")[i % 2] for i in range(layers)],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": hidden // 32,
        "linear_num_value_heads": hidden // 16,
        "partial_rotary_factor": 1.0,
    }
