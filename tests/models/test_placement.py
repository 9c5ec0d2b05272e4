"""LoRA placement by number: exact module lists at the published sizes of every family (meta device)."""

import re

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.architectures import ARCHITECTURES as OLDER
from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.models.placement import Layers, layers_of, lora_targets, present_parts, read_layers
from tests.helpers.architectures import ARCHITECTURES

CONFIGS = {name: config for name, (_, config) in OLDER.items()} | ARCHITECTURES
QKVO = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
GATED = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
DELTA_NET = [f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")]
SHARED = [name.replace("mlp", "mlp.shared_expert") for name in GATED]
# {model: (its last two layers with their linears, its last four blocks with theirs)}
LAST = {
    "Qwen2-VL-7B": (
        dict.fromkeys((26, 27), QKVO + GATED),
        {block: ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"] for block in (28, 29, 30, 31)},
    ),
    "Qwen2.5-VL-3B": (
        dict.fromkeys((34, 35), QKVO + GATED),
        {block: ["attn.qkv", "attn.proj", *GATED] for block in (28, 29, 30, 31)},
    ),
    "Qwen3-VL-4B": (
        dict.fromkeys((34, 35), QKVO + GATED),
        {block: ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"] for block in (20, 21, 22, 23)},
    ),
    "Qwen3-VL-30B-A3B": (
        dict.fromkeys((46, 47), QKVO),
        {block: ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"] for block in (23, 24, 25, 26)},
    ),
    "Qwen3.5-4B": (
        {30: DELTA_NET + GATED, 31: QKVO + GATED},
        {block: ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"] for block in (20, 21, 22, 23)},
    ),
    "Qwen3.5-35B-A3B": (
        {38: DELTA_NET + SHARED, 39: QKVO + SHARED},
        {block: ["attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"] for block in (23, 24, 25, 26)},
    ),
}


@pytest.fixture(scope="module", params=LAST)
def full_size(request) -> tuple[str, torch.nn.Module]:
    with torch.device("meta"):
        return request.param, AutoModelForImageTextToText.from_config(CONFIGS[request.param])


def in_layers(linears: dict[int, list[str]]) -> set[str]:
    return {f"model.language_model.layers.{i}.{name}" for i, names in linears.items() for name in names}


def in_blocks(linears: dict[int, list[str]]) -> set[str]:
    return {f"model.visual.blocks.{i}.{name}" for i, names in linears.items() for name in names}


def hit(model: torch.nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


def test_the_sizes_are_those_of_the_hub():
    """The number of parameters that the Hub states for Qwen3-VL-4B."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIGS["Qwen3-VL-4B"])
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e9, 3) == 4.438


def test_the_last_layers_and_blocks_are_adapted_and_nothing_else(full_size):
    name, model = full_size
    layers, blocks = in_layers(LAST[name][0]), in_blocks(LAST[name][1])

    def targets(llm, vision, **others) -> set[str]:
        return hit(model, lora_targets(model, layers=layers_of(model.config, llm, vision), **others))

    assert targets(["-2"], ["0"]) == layers
    assert targets(["0"], ["-4"]) == blocks
    assert targets(["-2"], ["-4"]) == layers | blocks
    first, last = min(LAST[name][1]), max(LAST[name][1])
    assert targets(["last 2"], [f"{first}-{last}"]) == layers | blocks
    assert targets([*LAST[name][0]], [first, f"{first + 1}-{last}"]) == layers | blocks
    # The keys that name linears are narrowed: attention alone, and gate and up with down frozen.
    assert targets(["-1"], ["0"], suffixes=["q_proj", "k_proj", "v_proj", "o_proj"]) == {
        path for path in layers if f".{max(LAST[name][0])}.self_attn." in path
    }
    gated = {path for path in layers if path.endswith(("gate_proj", "up_proj"))}
    if gated:
        assert targets(["-2"], None, suffixes=["gate_proj", "up_proj"]) == gated
    # With lora_vision, blocks that are not narrowed are adapted too.
    assert hit(model, lora_targets(model, suffixes="o_proj", vision=True, layers=Layers(llm=()))) >= blocks
    parts = ["language_attention", "vision_attention", "merger"]
    found = targets(["-2"], ["-4"], parts=parts)
    assert {path for path in found if "merger" in path} == hit(model, lora_targets(model, ["merger"])) != set()
    assert {path for path in found if "merger" not in path} == {
        path for path in layers | blocks if ".self_attn." in path or ".attn." in path
    }
    assert targets(["0"], ["-4"], parts=["language_attention", "vision_mlp"]) == {p for p in blocks if ".mlp." in p}


def test_layers_without_a_linear_of_the_part_or_name_are_an_error(full_size):
    """The first three layers of Qwen3.5 are gated delta nets."""
    name, model = full_size
    if not name.startswith("Qwen3.5"):
        return
    layers = layers_of(model.config, ["0-2"], None)
    with pytest.raises(UserError, match=r"no linear layers q_proj in its layers 0, 1, 2\. Use in_proj_a"):
        lora_targets(model, suffixes=["q_proj"], layers=layers)
    with pytest.raises(UserError, match="no linears in language_attention in the chosen layers"):
        lora_targets(model, ["language_attention", "language_mlp"], layers=layers)
    assert present_parts(model, ["language_attention", "language_mlp"], layers) == ["language_mlp"]


def test_nothing_to_adapt_is_an_error(full_size):
    _, model = full_size
    with pytest.raises(UserError, match="LoRA would adapt no layer at all"):
        lora_targets(model, vision=True, layers=Layers((), ()))
    with pytest.raises(UserError, match="LoRA would adapt no layer at all"):
        lora_targets(model, ["language_attention"], layers=Layers((), None))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_path_of_every_layered_part_has_one_number(family):
    """Indices take its place."""
    for part, place in family.lora_parts.items():
        assert part == "merger" or place.count(r"\d+") == 1


@pytest.mark.parametrize(
    ("words", "indices"),
    [
        (["-2"], (34, 35)),
        (["last 2"], (34, 35)),
        (["last", "2"], (34, 35)),  # from a command line without quotation marks
        (["-36"], tuple(range(36))),
        (["0"], ()),
        (["0-0"], (0,)),
        (["34,35"], (34, 35)),
        ([35, 34, 34], (34, 35)),
        (["0", "20 - 22", "35"], (0, 20, 21, 22, 35)),
    ],
)
def test_layers_are_named_by_number_list_or_range(words, indices):
    assert read_layers(words, 36) == indices


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["2"], "'2' could be a number or an index; write -2 for the last 2, 2-2 for 2"),
        (["-0"], "must name at least 1"),
        (["22-20"], "'22-20' ends before it begins"),
        (["-2", "-1"], "'-2' is neither -N"),
        (["3,x"], "'x' is neither"),
        ([], "'' is neither"),
    ],
)
def test_unreadable_layers_are_reported_before_the_model_is_known(words, problem):
    with pytest.raises(ValueError) as error:
        read_layers(words)
    assert problem in str(error.value)


def test_layers_that_the_model_lacks_are_reported_with_their_number():
    with pytest.raises(UserError) as error:
        layers_of(CONFIGS["Qwen3-VL-4B"], ["-37"], ["22-25"])
    assert error.value.problems == [
        "lora_llm_layers: '-37' must name at least 1 and at most all of them, or be 0 for none. This model has 36 layers of the "
        "language model",
        "lora_vision_blocks: '22-25' is beyond the last, 23. This model has 24 blocks of the vision tower",
    ]
