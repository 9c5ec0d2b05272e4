"""What is counted before training: quantized and adapted layers, and parameters."""

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model

from assets.build_tiny_model import build_model, build_tokenizer
from boxtune.families import FAMILIES
from boxtune.models.describing import describe_modules, quantized_modules, tower, trainable_parameters
from boxtune.models.lora import adapted_layers, lora_config
from boxtune.models.placement import lora_targets


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model.visual.blocks.0.attn.qkv", "vision"),
        ("base_model.model.model.visual.merger.mlp.0", "vision"),
        ("model.language_model.layers.0.mlp.up_proj", "language"),
        ("lm_head", "head"),
        ("model.audiovisual.blocks.0", "head"),
    ],
)
def test_the_tower_of_a_module(path, name):
    assert tower(path, FAMILIES["qwen2_5_vl"]) == name


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_a_quantized_layer_has_as_many_parameters_as_before(storage):
    """Two 4-bit values are in a byte, and up to four bytes in a stored number."""
    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", quant_storage=storage).to("cpu")
    assert layer.weight.numel() == 64 * 32 // 2 // storage.itemsize
    layer.weight.requires_grad_(False)
    assert trainable_parameters(torch.nn.Sequential(layer, torch.nn.Linear(5, 2))) == (12, 64 * 32 + 12)


def test_layers_are_counted_by_tower_and_adapted_ones_by_part():
    with torch.device("meta"):
        model = build_model("qwen2_5_vl", build_tokenizer(), hidden=64, layers=1, vision_layers=1)
    assert quantized_modules(model) == {
        "vision": {"nf4": 0, "full": 7},
        "language": {"nf4": 0, "full": 7},
        "head": {"nf4": 0, "full": 1},
    }
    adapted = get_peft_model(model, lora_config(4, 8, 0.0, lora_targets(model, suffixes=["q_proj", "up_proj"])))
    assert quantized_modules(adapted)["language"] == {"nf4": 0, "full": 7}, "the LoRA's own linears do not count"
    lines = describe_modules(adapted).splitlines()
    assert "  vision    linears: 0 in NF4, 7 in full precision" in lines
    assert "  LoRA on language_attention: 1 q_proj (layers 0)" in lines and "  LoRA on merger: none" in lines
    trainable, total = trainable_parameters(adapted)
    assert adapted_layers(adapted)["language_mlp"] == [0] and adapted_layers(adapted)["vision_mlp"] == []
    assert trainable == sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name) > 0
    assert lines[-1] == f"  trainable: {trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)"
