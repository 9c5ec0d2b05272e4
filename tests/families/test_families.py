"""The facts of every family, compared with transformers' own classes. No weights are made: the models are on the meta device."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from boxtune.answers.syntaxes import SYNTAXES
from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.families.family import LORA_PARTS
from boxtune.families.recognise import recognise_family

HUB_IDS = {
    "qwen2_vl": ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B", "unsloth/Qwen2-VL-72B-Instruct-bnb-4bit"],
    "qwen2_5_vl": ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "me/qwen2_5-vl-tuned"],
    "qwen3_vl": ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-8B-Thinking", "me/qwen3_vl_tuned"],
    "qwen3_vl_moe": ["Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-235B-A22B-Thinking", "me/tiny_qwen3_vl_moe"],
    "qwen3_5": ["Qwen/Qwen3.5-4B", "Qwen/Qwen3.6-27B", "unsloth/Qwen3.8-27B", "me/qwen3_5-tuned"],
    "qwen3_5_moe": ["Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.6-35B-A3B", "Qwen/Qwen3.5-397B-A17B", "me/tiny_qwen3_5_moe"],
}


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    """{family: a model with the default configuration of transformers, but four language layers}."""
    found = {}
    for name in FAMILIES:
        config = AutoConfig.for_model(name, text_config={"num_hidden_layers": 4})
        with torch.device("meta"):
            found[name] = AutoModelForImageTextToText.from_config(config)
    return found


def linears(model: torch.nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def test_the_dict_holds_every_family_under_its_own_name():
    assert {name: family.name for name, family in FAMILIES.items()} == {name: name for name in HUB_IDS}
    assert {family.syntax for family in FAMILIES.values()} <= SYNTAXES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hub_id_belongs_to_one_family(name):
    for hub_id in HUB_IDS[name]:
        assert [other for other in FAMILIES if re.search(FAMILIES[other].hub_name, hub_id, re.IGNORECASE)] == [name]


def test_coordinates_are_pixels_in_qwen2_5_vl_and_thousandths_elsewhere():
    steps = {name: family.coordinate_steps for name, family in FAMILIES.items()}
    assert steps == dict.fromkeys(FAMILIES, 1000) | {"qwen2_5_vl": None}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_keys_of_earlier_files_give_the_module_paths_of_today(name):
    path = FAMILIES[name].module_path
    assert path("visual.blocks.0.attn.qkv.weight") == path("model.visual.blocks.0.attn.qkv.weight")
    assert path("visual.blocks.0.attn.qkv.weight") == "model.visual.blocks.0.attn.qkv"
    assert path("model.layers.0.mlp.up_proj.weight") == "model.language_model.layers.0.mlp.up_proj"
    assert path("model.language_model.norm.weight") == "model.language_model.norm"
    assert path("lm_head.weight") == "lm_head"


@pytest.mark.parametrize("name", FAMILIES)
def test_patch_and_merge_size_are_those_of_the_vision_tower(name):
    family, vision = FAMILIES[name], AutoConfig.for_model(name).vision_config
    assert (family.patch_size, family.merge_size) == (vision.patch_size, vision.spatial_merge_size)
    assert family.factor == vision.patch_size * vision.spatial_merge_size


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_are_where_the_family_says(name, models):
    family, model = FAMILIES[name], models[name]
    tower = model.get_submodule(family.vision_tower)
    assert isinstance(model.get_submodule(family.lm_head), torch.nn.Linear)
    assert model.get_submodule(family.lm_head) is model.get_output_embeddings()
    blocks = model.base_model.get_submodule(family.vision_blocks)
    assert isinstance(blocks, torch.nn.ModuleList) and len(blocks) == AutoConfig.for_model(name).vision_config.depth
    assert set(blocks.modules()) < set(tower.modules())
    language = model.base_model.get_submodule(family.language_model)
    assert model.get_input_embeddings() in set(language.modules())
    assert not set(language.modules()) & set(tower.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_but_head_and_gates_of_experts_is_in_exactly_one_lora_part(name, models):
    family, model = FAMILIES[name], models[name]
    assert [*family.lora_parts] == [part for part in LORA_PARTS if part in family.lora_parts]
    parts = {
        path: [part for part, place in family.lora_parts.items() if re.fullmatch(rf"(?:.*\.)?{place}\..+", path)]
        for path in linears(model)
        if not path.endswith("shared_expert_gate")
    }
    assert parts.pop(family.lm_head) == []
    assert {len(found) for found in parts.values()} == {1}
    assert {part for found in parts.values() for part in found} == {*family.lora_parts}
    for path, (part,) in parts.items():
        assert path.startswith(f"{family.vision_tower}.") == (part in ("vision_attention", "vision_mlp", "merger"))


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_nf4_skips_the_head_its_exceptions_and_by_default_the_vision_tower(name, vision, models):
    """transformers' own rule, because a name that it does not match is quantized without a warning."""
    family, model = FAMILIES[name], models[name]
    skipped = {path for path in linears(model) if not should_convert_module(path, family.unquantized_modules(vision))}
    tower = {path for path in linears(model) if path.startswith(f"{family.vision_tower}.")}
    kept = {family.lm_head} | {path for path in linears(model) if path.endswith(family.unquantized or ("none",))}
    assert tower and len(kept) == (7 if name == "qwen3_5" else 1)  # two gates in three of four layers
    assert skipped == (kept if vision else kept | tower)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_of_all_experts_are_where_the_family_says(name, models):
    """They are what bitsandbytes would pass over: parameters with three dimensions that belong to no convolution."""
    family, model = FAMILIES[name], models[name]
    stacked = {path.rpartition(".")[0] for path, parameter in model.named_parameters() if parameter.ndim == 3}
    stacked = {path for path in stacked if not isinstance(model.get_submodule(path), torch.nn.Conv1d)}
    place = re.compile(rf"(?:.*\.)?{family.experts}")
    assert stacked == {path for path, _ in model.named_modules() if family.experts and place.fullmatch(path)}
    assert len(stacked) == (4 if name.endswith("_moe") else 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_of_a_saved_model_give_module_paths(name, tiny_models):
    """save_pretrained writes the same keys as the files on the Hub, but for experts, to which no LoRA belongs."""
    folder, family = tiny_models[name], FAMILIES[name]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    with safe_open(folder / "model.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.endswith(".weight") and ".experts." not in key]  # noqa: SIM118
        paths = set(map(family.module_path, keys))
    assert paths == {path.removesuffix(".weight") for path in model.state_dict() if path.endswith(".weight")}


@pytest.mark.parametrize(("name", "folder"), [("qwen2_5_vl", "qwen2_5_vl_processor"), ("qwen3_vl", "qwen3_vl")])
def test_image_processors_on_the_hub_use_the_same_patches(name, folder, shared_data):
    settings = json.loads((shared_data / "qwen_tokenizer" / folder / "preprocessor_config.json").read_text())
    assert (settings["patch_size"], settings["merge_size"]) == (FAMILIES[name].patch_size, FAMILIES[name].merge_size)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl"),
        ("someone/qwen3-vl-8b-tuned", "qwen3_vl"),
        ("assets/tiny_qwen3_vl", "qwen3_vl"),
    ],
)
def test_a_models_family(model, family):
    assert recognise_family(model) == family


def test_a_model_of_another_type_is_refused_although_its_name_is_like_that_of_a_family():
    """Qwen3.8-Flash-Next is a mixture of experts of the type qwen4_exp, with other layers than Qwen3.8."""
    with pytest.raises(UserError, match=r"Qwen/Qwen3\.8-Flash-Next: the name matches none of the families"):
        recognise_family("Qwen/Qwen3.8-Flash-Next")
