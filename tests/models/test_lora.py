"""LoRA placement: in every family, the pattern of a part matches all linears of that part and nothing else."""

import re

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from assets.build_tiny_model import build_model, build_tokenizer
from benchmarks.architectures import ARCHITECTURES
from boxtune.common.errors import UserError
from boxtune.families.family import LORA_PARTS
from boxtune.models.lora import ATTENTION, lora_config
from boxtune.models.placement import lora_targets

ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
QKVO = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
GATED = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
# Of the Hub's models: (layers of the language model, blocks of the vision tower, linears of a block's MLP, and of the mergers).
FACTS = {
    "Qwen2-VL-7B": (28, 32, ["mlp.fc1", "mlp.fc2"], ["merger.mlp.0", "merger.mlp.2"]),
    "Qwen2.5-VL-3B": (36, 32, GATED, ["merger.mlp.0", "merger.mlp.2"]),
    "Qwen3-VL-8B": (
        *(36, 27, ["mlp.linear_fc1", "mlp.linear_fc2"]),
        ["merger.linear_fc1", "merger.linear_fc2"]
        + [f"deepstack_merger_list.{i}.linear_fc{j}" for i in range(3) for j in (1, 2)],
    ),
}


def linears_of(layers: int, blocks: int, vision_mlp: list[str], mergers: list[str]) -> dict[str, set[str]]:
    """{part: module paths}."""
    language, vision = "model.language_model.layers", "model.visual.blocks"
    return {
        "language_attention": {f"{language}.{i}.{name}" for i in range(layers) for name in QKVO},
        "language_mlp": {f"{language}.{i}.{name}" for i in range(layers) for name in GATED},
        "vision_attention": {f"{vision}.{i}.attn.{name}" for i in range(blocks) for name in ("qkv", "proj")},
        "vision_mlp": {f"{vision}.{i}.{name}" for i in range(blocks) for name in vision_mlp},
        "merger": {f"model.visual.{name}" for name in mergers},
    }


@pytest.fixture(scope="module", params=FACTS)
def full_size(request) -> tuple[str, torch.nn.Module]:
    model_class, config = ARCHITECTURES[request.param]
    with torch.device("meta"):
        return request.param, model_class(config)


def hit(model: torch.nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


def test_the_pattern_of_a_part_matches_its_linears_only(full_size):
    name, model = full_size
    wanted = linears_of(*FACTS[name])
    assert wanted.keys() == {*LORA_PARTS} - {"language_linear_attention"}
    for part, paths in wanted.items():
        assert hit(model, lora_targets(model, [part])) == paths
    together = lora_targets(model, list(wanted))
    assert hit(model, together) == set().union(*wanted.values())
    # Paths may have the prefixes of PEFT and of a trainer. A tower with a similar name does not match.
    assert re.fullmatch(together, "base_model.model.model.visual.merger" + FACTS[name][3][0].removeprefix("merger"))
    assert not re.fullmatch(together, "model.audiovisual.blocks.0.attn.qkv")


def test_suffixes_match_the_language_model_and_vision_adds_the_blocks(full_size):
    """The linears of Qwen2.5-VL's vision MLPs have the same names as those of the language model."""
    name, model = full_size
    parts = linears_of(*FACTS[name])
    attention, everything = parts["language_attention"], parts["language_attention"] | parts["language_mlp"]
    assert hit(model, lora_targets(model)) == hit(model, lora_targets(model, suffixes=ATTENTION)) == attention
    for suffixes in ("all-linear", ALL_LINEAR):
        assert hit(model, lora_targets(model, suffixes=suffixes)) == everything
    blocks = parts["vision_attention"] | parts["vision_mlp"]
    assert hit(model, lora_targets(model, suffixes=ALL_LINEAR, vision=True)) == everything | blocks
    # TRL passes a list of one name as a string.
    assert hit(model, lora_targets(model, suffixes="up_proj")) == {p for p in everything if p.endswith("up_proj")}


def test_a_part_without_linears_is_reported_with_the_linears_of_the_model():
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config={"num_hidden_layers": 1}, vision_config={"depth": 0})
        )
    with pytest.raises(UserError) as error:
        lora_targets(model, ["language_mlp", "vision_attention", "vision_mlp"])
    assert "no linears in vision_attention, vision_mlp." in str(error.value)
    assert "language_mlp: 1 down_proj, 1 gate_proj, 1 up_proj" in error.value.problems
    assert "vision_mlp: none" in error.value.problems
    assert "merger: 1 mlp.0, 1 mlp.2" in error.value.problems


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 32 / 16), (True, 32 / 4)])
def test_the_config_has_the_given_rank_scale_and_dropout(use_rslora, scale):
    with torch.device("meta"):
        model = build_model("qwen2_5_vl", build_tokenizer(), hidden=64, layers=1, vision_layers=1)
    config = lora_config(16, 32, 0.1, lora_targets(model, suffixes=["q_proj"]), use_rslora=use_rslora)
    layers = [each for each in get_peft_model(model, config).modules() if isinstance(each, LoraLayer)]
    assert [layer.scaling["default"] for layer in layers] == [scale]
    assert layers[0].r["default"] == 16 and layers[0].lora_dropout["default"].p == 0.1


def test_every_suffix_that_matches_nothing_is_reported():
    with torch.device("meta"):
        model = build_model("qwen2_5_vl", build_tokenizer(), hidden=64, layers=1, vision_layers=1)
    with pytest.raises(
        UserError, match=r"the language model has no linear layers qkv, q_prj\. Use k_proj, o_proj, q_proj, v"
    ):
        lora_targets(model, suffixes=["q_proj", "qkv", "q_prj"])
