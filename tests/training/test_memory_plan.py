"""The planned memory: exact weights of published sizes, activations against a real pass, and what makes a recipe fit."""

from dataclasses import replace

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES
from boxtune.models.activations import language_layer_bytes
from boxtune.models.config import load_config
from boxtune.training import memory_plan
from boxtune.training.memory_plan import Batch, Cost, batch_of, cost_of, fits, largest_batch, plan, remedy, savings
from boxtune.training.recipe import load_recipe
from boxtune.training.setup import build_model

COST = Cost(
    quantizable=6_000_000_000,
    largest=70_000_000,
    others=3e9,
    trained=0.6e9,
    language=(10e6, 1e6),
    vision=(0.0, 0.0),
    vocab_size=150_000,
    cache=57_344,
    merged=4,
)
BATCH = Batch(
    size=4,
    tokens=2048,
    patches=4096,
    response=512,
    eval_size=8,
    in_4_bits=False,
    double_quant=True,
    checkpointing=False,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """{name: folder of a published model's config}"""
    folder = tmp_path_factory.mktemp("configs")
    for name, (_, config) in ARCHITECTURES.items():
        config.save_pretrained(folder / name)
    return folder


def recipe_of(name: str, *words):
    return load_recipe(["--config", name, *map(str, words)], needs_gpu=False)


@pytest.mark.parametrize(
    ("recipe", "model", "parameters", "quantizable", "trained"),
    [
        # 8.291 billion parameters, of which 6.525 billion are linear layers of the language model; r 64 on q, k, v and o
        ("nutrition_qlora", "Qwen2-VL-7B", 8.291e9, 6.525e9, 40.4e6),
        ("grounding_qwen3vl", "Qwen3-VL-8B", 8.767e9, 6.946e9, 28.3e6),
    ],
)
def test_weights_are_counted_exactly(folder, recipe, model, parameters, quantizable, trained):
    recipe = recipe_of(recipe, "--model_name_or_path", folder / model)
    config = load_config(str(folder / model), None)
    cost = cost_of(recipe, config)
    assert cost.quantizable == pytest.approx(quantizable, rel=1e-3)
    assert cost.quantizable + cost.others / 2 == pytest.approx(parameters, rel=1e-3)  # the others are in 16 bits
    assert cost.trained / 16 == pytest.approx(trained, rel=2e-3)
    assert cost.vision == (0, 0)  # nothing in the tower is trained


def test_activations_of_the_whole_model_equal_those_of_a_real_pass():
    """What a forward pass of the embedded model keeps, apart from weights. Within 12 %, because the plan leaves out what is
    outside the layers: embeddings, mergers and rotary tables."""
    recipe = recipe_of("tiny_nutrition_qlora", "--load_in_4bit", "false")
    config = load_config("assets/tiny_qwen3_vl", None)
    cost = cost_of(recipe, config)
    model, found = _trained_model(recipe, config), {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    patches, text_tokens = 196, 60
    image = torch.full((1, patches // 4), config.image_token_id)
    ids = torch.cat([torch.tensor([[config.vision_start_token_id]]), image, torch.full((1, text_tokens), 20)], dim=1)
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(patches, 3 * 2 * 16 * 16),
        "image_grid_thw": torch.tensor([[1, 14, 14]]),
    }
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model.model.model(**inputs, use_cache=False)
    planned = ids.shape[1] * cost.language[False] + patches * cost.vision[False]
    assert planned == pytest.approx(sum(found.values()), rel=0.12)


def _trained_model(recipe, config):
    from peft import get_peft_model

    from boxtune.training.setup import make_lora_config

    model = build_model(recipe, config)
    return get_peft_model(model, make_lora_config(recipe, model)).train()


def test_bytes_are_proportional_to_tokens(monkeypatch):
    """A count at 64 tokens stands for any number of tokens, because attention keeps no matrix of scores."""
    layer = torch.nn.Linear(8, 8, device="meta")

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, hidden, **kwargs):
            return self.inner(hidden).relu()

    few = language_layer_bytes(Layer(), 8, 4, torch.float32)
    monkeypatch.setattr("boxtune.models.activations.COUNTED", 640)
    assert language_layer_bytes(Layer(), 8, 4, torch.float32) == few
    assert few.saved == 2 * 8 * 4 and few.inputs == 8 * 4  # the input of the product and the output of the relu


def test_layers_below_all_adapters_keep_nothing():
    config = load_config("assets/tiny_qwen3_vl", None)
    words = ("--lora_vision", "false", "--lora_target_modules", "q_proj")
    whole = cost_of(recipe_of("tiny_nutrition_qlora", *words), config)
    last = cost_of(recipe_of("tiny_nutrition_qlora", *words, "--lora_llm_layers", "last 1"), config)
    assert last.language[False] == pytest.approx(whole.language[False] / 5, rel=0.05)  # of five layers
    assert whole.vision == last.vision == (0, 0)


def test_the_parts_of_a_plan():
    parts = plan(COST, BATCH)
    assert parts["frozen weights"] == 15e9
    assert parts["activations, language model"] == 4 * 2048 * 10e6
    in_4_bits = plan(COST, replace(BATCH, in_4_bits=True, checkpointing=True))
    assert in_4_bits["frozen weights"] == pytest.approx(3e9 + 6e9 * 0.51587, rel=1e-4)
    assert in_4_bits["activations, language model"] == 4 * 2048 * 1e6
    assert in_4_bits["a weight while it is expanded to 16 bits"] == 140e6
    evaluation = plan(COST, replace(BATCH, checkpointing=True, size=1, eval_size=64))
    assert evaluation["keys and values in evaluation"] == 64 * (2048 + 512) * 57_344
    assert "activations, language model" not in evaluation  # never held together


def test_the_largest_batch_fits_and_the_next_does_not():
    for gpu_gb in (24, 40, 80):
        size = largest_batch(COST, replace(BATCH, in_4_bits=True, checkpointing=True, eval_size=1), gpu_gb)
        batch = replace(BATCH, in_4_bits=True, checkpointing=True, eval_size=1)
        assert fits(COST, replace(batch, size=size), gpu_gb) and not fits(COST, replace(batch, size=2 * size), gpu_gb)


def test_the_least_change_that_makes_a_recipe_fit():
    batch = replace(BATCH, eval_size=1)
    assert remedy(COST, batch, 500) == ""
    assert remedy(COST, batch, 80) == "per_device_train_batch_size: 2"
    assert remedy(COST, batch, 24) == "per_device_train_batch_size: 1, gradient_checkpointing: true"
    assert remedy(COST, batch, 12) == "per_device_train_batch_size: 1, gradient_checkpointing: true, load_in_4bit: true"
    assert remedy(COST, batch, 2) == "a smaller model"


def test_three_changes_are_named_with_what_they_save():
    first, second, third = savings(COST, BATCH)
    assert first == "gradient_checkpointing: true (saves about 73.7 GB)"
    assert second.startswith("per_device_train_batch_size: 2 with gradient_accumulation_steps × 2 (saves about 41.")
    assert third.startswith("half of max_pixels")


def test_a_limit_of_tokens_is_planned_and_changed_in_tokens():
    recipe = recipe_of("tiny_nutrition_qlora", "--tokens_per_batch", "4096")
    config = load_config("assets/tiny_qwen3_vl", None)
    batch = batch_of(recipe, config, 50_176, tokens=1024)
    assert batch.size == 4 and batch_of(recipe, config, 50_176, tokens=8192).size == 1  # alone in its batch
    assert batch.size_key() == "tokens_per_batch: 4096"
    assert any("tokens_per_batch: 2048 with gradient_accumulation_steps" in words for words in savings(COST, batch))
    assert remedy(COST, replace(BATCH, eval_size=1, limits_tokens=True), 80) == "tokens_per_batch: 4096"


def test_the_command_prints_parts_and_gpus(capsys):
    memory_plan.main(["--config", "tiny_nutrition_qlora", "--gpu_gb", "4"])
    printed = capsys.readouterr().out
    assert "trained weights, gradients" in printed and "141" in printed and "batch size 8, 512 tokens" in printed


@pytest.mark.parametrize(
    ("words", "message"), [(["--gpu_gb", "big"], "no number of gigabytes"), (["--gpu_gb"], "nothing is no number")]
)
def test_a_wrong_size_is_one_message(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        memory_plan.main(["--config", "tiny_nutrition_qlora", *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_recipe_without_a_pixel_budget_is_one_message(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model_name_or_path: assets/tiny_qwen3_vl\ndtype: float32\nbf16: false\ndata_dir: nowhere\n")
    with pytest.raises(SystemExit):
        memory_plan.main(["--config", str(recipe)])
    assert "add --max_pixels N" in capsys.readouterr().err
