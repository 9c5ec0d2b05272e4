"""Loading models: which attention and device, and weights that do not match the config."""

import pytest
import torch
from accelerate import PartialState
from transformers import AutoConfig

from boxtune.common.errors import UserError
from boxtune.families import FAMILIES
from boxtune.models import config as model_config
from boxtune.models import loading
from boxtune.models.config import codec_for, family_of, load_config
from boxtune.models.loading import best_attention, load_model
from boxtune.models.quantization import nf4_config, require_full_precision


@pytest.mark.parametrize(
    ("dtype", "capability", "is_installed", "expected"),
    [
        (torch.bfloat16, (8, 0), True, "flash_attention_2"),
        (torch.float16, (9, 0), True, "flash_attention_2"),
        (torch.float32, (9, 0), True, "sdpa"),
        (torch.bfloat16, (7, 5), True, "sdpa"),
        (torch.bfloat16, (8, 0), False, "sdpa"),
        (torch.bfloat16, None, True, "sdpa"),
    ],
)
def test_flash_attention_needs_half_precision_a_recent_gpu_and_its_package(
    monkeypatch, dtype, capability, is_installed, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: is_installed)
    assert best_attention(dtype) == expected


def test_each_process_loads_onto_its_own_gpu_except_under_fsdp(monkeypatch):
    assert loading._device_map(None) is None or torch.cuda.is_available()
    assert loading._device_map("cpu") == {"": "cpu"}
    state = PartialState()
    monkeypatch.setattr(state, "device", torch.device("cuda", 1))
    monkeypatch.setattr(state, "local_process_index", 1)
    assert loading._device_map(None) == {"": 1}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert loading._device_map(None) == {"": "cpu"}


def test_all_weights_that_do_not_match_are_counted_and_some_are_listed():
    report = {"missing_keys": {"b", "a"}, "mismatched_keys": [("c", (1,), (2,))], "unexpected_keys": ["d"]}
    with pytest.raises(UserError, match="4 weights of m do not match its config") as error:
        loading._require_all_weights(report, "m")
    assert error.value.problems == [
        *("a: missing", "b: missing"),
        *("('c', (1,), (2,)): wrong shape", "d: unexpected"),
    ]
    empty = {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}
    loading._require_all_weights(empty, "m")
    with pytest.raises(UserError) as error:
        loading._require_all_weights(empty | {"missing_keys": [f"{i:03}" for i in range(50)]}, "m")
    assert "50 weights" in str(error.value) and str(error.value).count(": missing") == 20


def test_a_model_without_weights_is_one_message(tiny_models, tmp_path):
    folder = tiny_models["qwen2_vl"]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"corrupt")
    with pytest.raises(UserError, match=r"the weights of .* cannot be read: .* Download the model again"):
        load_model(str(tmp_path), dtype=torch.float32)


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("runs/x/final", "train the model first (make train RECIPE=NAME)"),
        ("assets/x", "Run the command from the repository root."),
        ("x", "Give the path of a model, or a Hub id of the form OWNER/NAME."),
        ("./x/y", "the folder does not exist"),
        ("a/b/c", "the folder does not exist"),
    ],
)
def test_a_path_without_a_model_is_never_looked_up_on_the_hub(monkeypatch, model_id, message):
    monkeypatch.setattr(model_config, "require_hub_model", None)
    with pytest.raises(UserError) as error:
        load_config(model_id)
    assert f"no model at {model_id!r}" in str(error.value) and message in str(error.value)
    assert ("train the model first" in str(error.value)) == model_id.startswith("runs/")


def test_a_folder_without_a_config_contains_no_model(tmp_path):
    with pytest.raises(UserError, match=r"contains no model: config.json is missing"):
        load_config(str(tmp_path))


def test_the_codec_is_that_of_the_family_and_kind_of_answer():
    config = AutoConfig.for_model("qwen2_5_vl")
    assert family_of(config) is FAMILIES["qwen2_5_vl"]
    assert codec_for(config).name == "qwen2_5_vl"
    assert codec_for(config, "click").name == "qwen2_5_vl_click"
    assert codec_for(config, "click", "qwen3_vl").name == "qwen3_vl"
    with pytest.raises(UserError, match=r"model type 'bert' is not supported\. Supported model types: qwen2_vl, "):
        family_of(AutoConfig.for_model("bert"))


def test_nf4_is_doubly_quantized_and_skips_what_the_family_says():
    family = FAMILIES["qwen2_vl"]
    config = nf4_config(family, torch.float16)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.float16
    assert config.llm_int8_skip_modules == family.unquantized_modules(False) == ["model.visual", "lm_head"]
    other = nf4_config(family, torch.bfloat16, double_quant=False, storage="bfloat16", vision=True)
    assert other.llm_int8_skip_modules == ["lm_head"] and not other.bnb_4bit_use_double_quant
    assert other.bnb_4bit_quant_storage == torch.bfloat16
    with pytest.raises(UserError, match="bnb_4bit_quant_storage int7"):
        nf4_config(family, torch.float16, storage="int7")


def test_a_published_quantized_model_is_refused():
    config = AutoConfig.for_model("qwen2_vl")
    require_full_precision(config, "m")
    config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(UserError, match="m is already quantized"):
        require_full_precision(config, "m")
