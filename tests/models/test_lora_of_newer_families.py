"""LoRA placement and 4-bit weights of Qwen3.5 and of mixtures of experts, at the sizes of models on the Hub (meta device)."""

import re

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.models.lora import adapted_modules, lora_config
from boxtune.models.placement import lora_targets, part_linears, present_parts
from boxtune.models.quantization import require_dense
from tests.helpers.architectures import ARCHITECTURES

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
DELTA_NET = ("in_proj_a", "in_proj_b", "in_proj_qkv", "in_proj_z", "out_proj")
GATED = ("down_proj", "gate_proj", "up_proj")
VISION = {
    "vision_attention": dict.fromkeys(("proj", "qkv"), 27),
    "vision_mlp": dict.fromkeys(("linear_fc1", "linear_fc2"), 27),
}
FACTS = {
    "Qwen3.5-4B": {
        "language_attention": dict.fromkeys(ATTENTION, 8),
        "language_linear_attention": dict.fromkeys(DELTA_NET, 24),
        "language_mlp": dict.fromkeys(GATED, 32),
        "vision_attention": dict.fromkeys(("proj", "qkv"), 24),
        "vision_mlp": dict.fromkeys(("linear_fc1", "linear_fc2"), 24),
        "merger": dict.fromkeys(("linear_fc1", "linear_fc2"), 1),
    },
    "Qwen3.5-9B": {
        "language_attention": dict.fromkeys(ATTENTION, 8),
        "language_linear_attention": dict.fromkeys(DELTA_NET, 24),
        "language_mlp": dict.fromkeys(GATED, 32),
        **VISION,
        "merger": dict.fromkeys(("linear_fc1", "linear_fc2"), 1),
    },
    "Qwen3.5-35B-A3B": {
        "language_attention": dict.fromkeys(ATTENTION, 10),
        "language_linear_attention": dict.fromkeys(DELTA_NET, 30),
        "language_mlp": dict.fromkeys(GATED, 40),
        **VISION,
        "merger": dict.fromkeys(("linear_fc1", "linear_fc2"), 1),
    },
    "Qwen3-VL-30B-A3B": {
        "language_attention": dict.fromkeys(ATTENTION, 48),
        **VISION,
        "merger": dict.fromkeys(("linear_fc1", "linear_fc2"), 4),  # three of the deepstack
    },
}


@pytest.fixture(scope="module", params=FACTS)
def full_size(request) -> tuple[str, torch.nn.Module]:
    with torch.device("meta"):
        return request.param, AutoModelForImageTextToText.from_config(ARCHITECTURES[request.param])


def hit(model: torch.nn.Module, pattern: str) -> dict[str, int]:
    """{name of a linear or of any other module that the pattern matches: count}."""
    counts: dict[str, int] = {}
    for path, _ in model.named_modules():
        if re.fullmatch(pattern, path):
            counts[path.rpartition(".")[2]] = counts.get(path.rpartition(".")[2], 0) + 1
    return dict(sorted(counts.items()))


def test_the_pattern_of_a_part_matches_its_linears_only(full_size):
    name, model = full_size
    assert part_linears(model) == FACTS[name]
    for part, counts in FACTS[name].items():
        assert hit(model, lora_targets(model, [part])) == counts


def test_all_linear_is_every_linear_of_the_language_model_but_neither_routers_nor_experts(full_size):
    name, model = full_size
    language = [counts for part, counts in FACTS[name].items() if part.startswith("language")]
    together = dict(sorted((linear, count) for counts in language for linear, count in counts.items()))
    assert hit(model, lora_targets(model, suffixes="all-linear")) == together


def test_peft_adapts_the_linears_of_the_parts_and_nothing_else(full_size):
    """PEFT turns the targets of some mixtures of experts into expert weights by itself."""
    name, model = full_size
    config = lora_config(2, 4, 0.0, lora_targets(model, list(FACTS[name])))
    with torch.device("meta"):
        adapted = get_peft_model(model, config)
    assert adapted_modules(adapted) == FACTS[name]
    trained = [path for path, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * sum(sum(counts.values()) for counts in FACTS[name].values())
    assert not [path for path in trained if ".experts." in path or ".gate." in path]
    adapted.unload()


@pytest.mark.parametrize("target", ["experts", "gate"])
def test_a_module_that_is_no_linear_layer_is_refused_with_the_names_of_those_that_are(full_size, target):
    _, model = full_size
    with pytest.raises(UserError, match=rf"no linear layers {target}\. Use k_proj, o_proj, q_proj, v_proj"):
        lora_targets(model, suffixes=[target])


def test_parts_that_a_family_lacks_are_an_error_or_left_out(full_size):
    name, model = full_size
    if name != "Qwen3-VL-30B-A3B":
        return
    with pytest.raises(UserError, match="no linears in language_linear_attention, language_mlp"):
        lora_targets(model, ["language_attention", "language_linear_attention", "language_mlp"])
    assert present_parts(model, ["language_mlp", "merger", "language_attention"]) == ["merger", "language_attention"]


@pytest.mark.parametrize(
    ("name", "unquantized"),
    # layers × experts × (gate, up and down) × hidden × intermediate × 2 bytes
    [("Qwen3.5-35B-A3B", 40 * 256 * 3 * 2048 * 512 * 2), ("Qwen3-VL-30B-A3B", 48 * 128 * 3 * 2048 * 768 * 2)],
)
def test_a_mixture_of_experts_is_not_quantized_and_the_message_counts_the_bytes(name, unquantized):
    config = ARCHITECTURES[name]
    with pytest.raises(UserError, match=f"{unquantized:,} bytes would stay unquantized") as error:
        require_dense(FAMILIES[config.model_type], config, f"Qwen/{name}")
    assert f"Qwen/{name} is a mixture of experts" in str(error.value)


def test_a_dense_model_may_be_quantized():
    require_dense(FAMILIES["qwen3_5"], ARCHITECTURES["Qwen3.5-9B"], "Qwen/Qwen3.5-9B")
