"""A run that continues from the adapter of an earlier run, with a new optimizer."""

import pytest
import torch
from safetensors.torch import load_file

from boxtune.common.errors import UserError
from boxtune.training.continuing import check_start
from boxtune.training.recipe import load_recipe
from tests.helpers.training import train, trainer_state

OPTIONS = ("--lora_llm_layers", "-1", "--lora_vision_blocks", "-1", "--lora_modules_to_save", "merger", "--lora_r", 8)


@pytest.fixture(scope="module")
def final(squares, tmp_path_factory):
    """The adapter of an earlier run."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    return train(squares, folder, *OPTIONS, "--lora_alpha", 16, "--warmup_steps", 0) / "final"


def adapter(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_starts_from_the_weights_of_the_earlier_one(final, squares, tmp_path, capsys):
    """At a learning rate that changes nothing, the final weights are those of the earlier run."""
    options = (*OPTIONS, "--lora_alpha", 16, "--continue_from", final, "--learning_rate", 1e-30, "--weight_decay", 0)
    run = train(squares, tmp_path / "run", *options)
    earlier, now = adapter(final), adapter(run / "final")
    assert earlier.keys() == now.keys() and all(torch.equal(earlier[key], now[key]) for key in earlier)
    assert any(earlier[key].any() for key in earlier if "lora_B" in key)
    assert any("merger" in key for key in earlier if ".lora_" not in key)
    assert f"continues from {final}: {len(earlier)} tensors" in capsys.readouterr().out
    assert trainer_state(run)["global_step"] == 2, "its own steps, from the first"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--lora_vision_blocks", "-2"], "visual.blocks.6.attn.proj.lora_A.weight: only in the recipe"),
        (["--lora_llm_layers", "0"], "layers.4.mlp.down_proj.lora_A.weight: only in the earlier adapter"),
    ],
)
def test_another_placement_is_refused_with_the_weights(final, squares, tmp_path, capsys, changed, message):
    options = [*OPTIONS, "--lora_alpha", 16, *changed]
    with pytest.raises(SystemExit) as stopped:
        train(squares, tmp_path / "run", *options, "--continue_from", final)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "do not match this recipe's placement" in error


def test_another_rank_scale_or_base_is_refused_before_the_model_is_loaded(final, tiny_models):
    words = [
        *map(str, OPTIONS),
        "--lora_r",
        "4",
        "--lora_alpha",
        "32",
        "--model_name_or_path",
        str(tiny_models["qwen3_vl"]),
    ]
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", *words, "--continue_from", str(final)])
    with pytest.raises(UserError, match="does not match this recipe") as error:
        check_start(recipe)
    assert error.value.problems[1:] == ["lora_r: 8 there, 4 here", "lora_alpha: 16 there, 32 here"]
    assert error.value.problems[0].startswith("model_name_or_path: assets/tiny_qwen3_vl there, ")


@pytest.mark.parametrize("below", ["", "missing"])
def test_a_folder_without_an_adapter_is_refused_with_what_was_meant(final, below):
    run = final.parent / below
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--continue_from", str(run)])
    with pytest.raises(UserError) as error:
        check_start(recipe)
    assert f"{run} is not an adapter that boxtune trained" in str(error.value)
    assert (f"did you mean {final}?" in str(error.value)) == (not below)


def test_only_an_adapter_can_be_continued():
    words = ["--use_peft", "false", "--load_in_4bit", "false", "--continue_from", "runs/x/final"]
    with pytest.raises(UserError) as error:
        load_recipe(["--config", "tiny_nutrition_qlora", *words])
    assert any(problem.startswith("continue_from: continues an adapter") for problem in error.value.problems)
