"""Training with packed batches: the same log entries as with padded ones, whatever the losses. Token budgets and refusals."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from boxtune.common.errors import UserError
from boxtune.families import FAMILIES as ALL_FAMILIES
from boxtune.training.batches import plan_batches, require_packing
from boxtune.training.recipe import Recipe, load_recipe
from tests.helpers.records import FAMILIES
from tests.helpers.training import WEIGHTS, log_history, train

# Of one step over examples of different lengths.
PLAIN = ("--load_in_4bit", "false", "--lora_vision", "false", "--per_device_train_batch_size", 3, "--max_steps", 1)
PACKED = ("--collator", "packed")


def logs_of(data, folder, *options) -> tuple[dict, dict]:
    """The first log entry of a padded and of a packed run."""
    runs = [train(data, folder / name, *PLAIN, *options, *more) for name, more in (("padded", ()), ("packed", PACKED))]
    return tuple(log_history(run, 1)[0] for run in runs)


def require_equal(padded: dict, packed: dict, tolerance: float = 1e-5) -> None:
    """Float32 sums over rows of other lengths differ in their last bits."""
    assert padded.keys() == packed.keys()
    for key in padded.keys() - {"padding_share", "memory_gb", "entropy"}:
        assert packed[key] == pytest.approx(padded[key], rel=tolerance, abs=1e-6), key
    assert padded["padding_share"] > 0 == packed["padding_share"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_box_losses_and_teachers_equal_those_of_padded_batches(family, tiny_models, squares, tmp_path):
    """grad_norm and the shares of the terms stand for the gradients."""
    options = ("--model_name_or_path", tiny_models[family], *WEIGHTS, "--end_token_weight", 0.5, "--teacher_ratio", 0.9)
    require_equal(*logs_of(squares, tmp_path, *options), tolerance=1e-4)


@pytest.mark.slow
def test_the_detection_head_sees_one_example_at_a_time(tiny_models, squares, tmp_path):
    """Its own image and question among those of teachers and of other examples, with captions, and into the model."""
    options = (
        "--model_name_or_path",
        tiny_models["qwen3_vl"],
        "--detection_head",
        "true",
        "--detection_hidden_size",
        32,
    )
    options += ("--detection_trains_model", "true", "--detection_caption_weight", 1, "--detection_caption_layers", 1)
    padded, packed = logs_of(squares, tmp_path, *options, "--teacher_ratio", 0.9)
    assert padded["detection_caption_loss"] > 0 and padded["detection_bbox_loss"] > 0
    require_equal(padded, packed, tolerance=1e-4)


@pytest.mark.slow
def test_sampled_responses_equal_those_of_padded_batches(tiny_models, squares, tmp_path):
    options = ("--model_name_or_path", tiny_models["qwen2_5_vl"], *WEIGHTS, "--grounding_mode", "both")
    padded, packed = logs_of(squares, tmp_path, *options, "--grounding_every", 1, "--grounding_samples", 2)
    assert padded["policy_cost"] > 0
    require_equal(padded, packed, tolerance=1e-4)


# ---- token budgets, groups and the choice of a collator ---------------------------------------------------------------------


def recipe(*options) -> Recipe:
    """tiny_nutrition_qlora, whose batches have eight examples."""
    return load_recipe(["--config", "tiny_nutrition_qlora", *map(str, options)])


def planned(lengths, *options, family: str = "qwen3_vl"):
    read = recipe(*options)
    return plan_batches(read, read.training, ALL_FAMILIES[family], lengths)


@pytest.mark.slow
def test_a_step_of_unequal_micro_batches_equals_one_of_all_examples_together(tiny_models, squares, tmp_path):
    """A step over the whole dataset, once as a padded batch and once as packed batches of different numbers of examples."""
    options = (
        "--model_name_or_path",
        tiny_models["qwen3_vl"],
        "--load_in_4bit",
        "false",
        "--lora_vision",
        "false",
        *WEIGHTS,
    )
    options += (
        "--detection_head",
        "true",
        "--detection_hidden_size",
        32,
        "--detection_caption_weight",
        1,
        "--max_steps",
        1,
    )
    options += ("--detection_caption_layers", 1, "--detection_trains_model", "true")
    budget = (
        *PACKED,
        "--tokens_per_batch",
        500,
        "--gradient_accumulation_steps",
        16,
        "--scale_lr_for_packing",
        "false",
    )
    padded = log_history(train(squares, tmp_path / "padded", *options, "--per_device_train_batch_size", 16), 1)[0]
    packed = log_history(train(squares, tmp_path / "packed", *options, *budget), 1)[0]
    keys = [key for key in padded if key.endswith("loss")] + ["grad_norm", "num_tokens", "learning_rate"]
    assert len(keys) == 12, keys
    for key in keys:
        assert packed[key] == pytest.approx(padded[key], rel=1e-4), key


@pytest.mark.slow
def test_a_run_with_a_token_budget_resumes_with_the_same_batches(squares, tmp_path, capsys):
    """An epoch of the 16 examples has fewer steps than the run, and it is interrupted inside its second epoch."""
    options = (*PACKED, "--tokens_per_batch", 1000, "--max_steps", 5, "--save_steps", 1)
    options += ("--save_total_limit", 9, "--lora_dropout", 0.1)
    run = train(squares, tmp_path / "run", *options)
    rows = [row for row in log_history(run, 5) if "loss" in row]
    assert 1 < rows[-1]["epoch"] < 5
    reference = load_file(run / "final" / "adapter_model.safetensors")
    shutil.rmtree(run / "final")
    in_second_epoch = next(i for i, row in enumerate(rows, 1) if row["epoch"] > 1)
    for step in range(in_second_epoch + 1, 6):
        shutil.rmtree(run / f"checkpoint-{step}")
    capsys.readouterr()
    train(squares, run, *options, "--resume_from_checkpoint", "true")
    resumed = load_file(run / "final" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], reference[key]) for key in reference)
    assert re.search(r"padding: 0 of [\d,]+ token positions in training \(0.0%\)", capsys.readouterr().out)


def test_learning_rates_follow_the_square_root_of_the_tokens_per_step(capsys):
    """Batches of 32 instead of 8 examples of 100 tokens."""
    options = ("--collator", "packed", "--tokens_per_batch", 3200)
    assert planned([100] * 64, *options).rate_factor == pytest.approx(2)
    assert "3,200; 800 with per_device_train_batch_size: 8. All learning rates × 2.000" in capsys.readouterr().out
    assert planned([100] * 64, *options, "--scale_lr_for_packing", "false").rate_factor == 1
    assert planned([100] * 64, "--collator", "packed").rate_factor == 1, (
        "a packed step has the same tokens as a padded one"
    )


def test_scaling_without_a_token_budget_is_named():
    assert any("scale_lr_for_packing" in note for note in recipe("--scale_lr_for_packing", "false").notes)
    with_budget = recipe("--scale_lr_for_packing", "false", "--tokens_per_batch", 900)
    assert not any("scale_lr_for_packing" in note for note in with_budget.notes)


def test_auto_packs_where_much_would_be_padding(capsys):
    equal, mixed = [300] * 64, [100, 900] * 32
    assert planned(mixed, "--collator", "auto").packs
    assert not planned(equal, "--collator", "auto").packs
    assert not planned(mixed).packs, "padded is the default"
    grouped = ("--collator", "auto", "--train_sampling_strategy", "group_by_length")
    assert not planned(mixed, *grouped).packs, "groups of equal length have no padding"
    assert not planned(mixed, "--collator", "auto", family="qwen3_5").packs
    assert "qwen3_5 has gated delta nets" in capsys.readouterr().out


def test_examples_longer_than_the_budget_are_named(capsys):
    planned([100] * 7 + [500], "--tokens_per_batch", 300)
    assert "1 examples are longer than tokens_per_batch, 300" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_families_whose_layers_leak_between_examples_are_refused_by_name(family):
    with pytest.raises(UserError, match=rf"(?s)use padded.*{family} has gated delta nets"):
        require_packing(recipe("--collator", "packed"), ALL_FAMILIES[family])
    require_packing(recipe(), ALL_FAMILIES[family])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--attn_implementation", "flex_attention"), "flex_attention is not known to keep packed examples apart"),
        (("--neftune_noise_alpha", 5), "neftune_noise_alpha: its noise depends on the length"),
    ],
)
def test_settings_that_packing_would_change_are_refused(options, problem):
    with pytest.raises(UserError, match=problem):
        require_packing(recipe("--collator", "packed", *options), ALL_FAMILIES["qwen3_vl"])
    for attention in ("sdpa", "eager", "flash_attention_2", "kernels-community/flash-attn2"):
        require_packing(recipe("--collator", "packed", "--attn_implementation", attention), ALL_FAMILIES["qwen3_vl"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--train_sampling_strategy", "sequential"), "use random or group_by_length"),
        (
            ("--train_sampling_strategy", "group_by_length", "--tokens_per_batch", 500),
            "tokens_per_batch already groups",
        ),
        (("--train_sampling_strategy", "group_by_length", "--collator", "packed"), "which have no padding"),
        (("--tokens_per_batch", 0), "tokens_per_batch: 0 must be at least 1"),
    ],
)
def test_keys_that_cannot_work_together_are_refused(options, problem):
    with pytest.raises(UserError, match=problem):
        recipe(*options)
