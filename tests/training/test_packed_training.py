"""Training with packed batches: the same log entries as with padded ones, whatever the losses; what is refused; what is logged."""

import pytest

from boxtune.data.dataset import read_records
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


@pytest.mark.parametrize("family", FAMILIES)
def test_box_losses_and_teachers_equal_those_of_padded_batches(family, tiny_models, squares, tmp_path):
    """grad_norm and the shares of the terms stand for the gradients."""
    options = ("--model_name_or_path", tiny_models[family], *WEIGHTS, "--end_token_weight", 0.5, "--teacher_ratio", 0.9)
    require_equal(*logs_of(squares, tmp_path, *options), tolerance=1e-4)


def test_the_detection_head_sees_one_example_at_a_time(tiny_models, squares, tmp_path):
    """Its own image and question among those of teachers and of other examples, with captions, and into the model."""
    options = ("--model_name_or_path", tiny_models["qwen3_vl"], "--detection_head", "true", "--detection_hidden_size", 32)
    options += ("--detection_trains_model", "true", "--detection_caption_weight", 1, "--detection_caption_layers", 1)
    padded, packed = logs_of(squares, tmp_path, *options, "--teacher_ratio", 0.9)
    assert padded["detection_caption_loss"] > 0 and padded["detection_bbox_loss"] > 0
    require_equal(padded, packed, tolerance=1e-4)


def test_sampled_responses_equal_those_of_padded_batches(tiny_models, squares, tmp_path):
    options = ("--model_name_or_path", tiny_models["qwen2_5_vl"], *WEIGHTS, "--grounding_mode", "both")
    padded, packed = logs_of(squares, tmp_path, *options, "--grounding_every", 1, "--grounding_samples", 2)
    assert padded["policy_cost"] > 0
    require_equal(padded, packed, tolerance=1e-4)
