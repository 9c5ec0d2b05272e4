"""What the trainer is built from, and what of a run stays in memory."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.run import determine_local_world_size

from boxtune.training import setup, setup_losses
from boxtune.training.callbacks import InterruptCallback
from boxtune.training.gradient_shares import GradientShares
from boxtune.training.padding import PaddingCount
from boxtune.training.recipe import load_recipe
from boxtune.training.run import record_start, run_training
from boxtune.training.trainer import DetectionTrainer
from tests.helpers.records import ROOT


def test_ddp_does_not_search_for_unused_parameters_unless_the_recipe_asks_for_it():
    """TRL turns the search on for vision models if nothing is set. Each example here has an image, so it finds nothing."""
    for words, searches in [([], False), (["--ddp_find_unused_parameters", "true"], True)]:
        recipe = load_recipe(["--config", "tiny_nutrition_qlora", *words])
        arguments = setup.trainer_arguments(recipe, {"train": [], "validation": []}, 50176, [])
        assert arguments.ddp_find_unused_parameters is searches
        assert recipe.training.ddp_find_unused_parameters is (True if words else None)  # the recipe is left as it was


@pytest.mark.parametrize(
    ("fsdp", "fsdp2", "dtype"),
    [(False, False, torch.float32), (True, True, torch.float32), (True, False, torch.bfloat16)],
)
def test_adapters_are_fp32_except_under_fsdp1(fsdp, fsdp2, dtype):
    model = torch.nn.Linear(2, 2).bfloat16()  # as TRL leaves the adapters of a 4-bit model
    model.bias.requires_grad = False
    trainer = SimpleNamespace(
        is_fsdp_enabled=fsdp, accelerator=SimpleNamespace(is_fsdp2=fsdp2), model=model, adapter_dtype=torch.float32
    )
    DetectionTrainer._cast_adapters(trainer)
    assert (model.weight.dtype, model.bias.dtype) == (dtype, torch.bfloat16)


@pytest.mark.parametrize(
    ("accumulation", "processes", "divided", "said"),
    [
        (16, 1, 16, ""),
        (
            16,
            8,
            2,
            "note: 8 processes: gradient_accumulation_steps 16 → 2, so each step has 32 examples, as with one process",
        ),
        (
            16,
            6,
            3,
            "warning: 6 processes: gradient_accumulation_steps 16 → 3, but each step has 36 examples instead of 32",
        ),
        (1, 2, 1, "warning: 2 processes: gradient_accumulation_steps 1 → 1, but each step has 4 examples instead of 2"),
    ],
)
def test_the_batch_of_a_step_does_not_depend_on_the_number_of_processes(accumulation, processes, divided, said, capsys):
    arguments = SimpleNamespace(
        world_size=processes, gradient_accumulation_steps=accumulation, per_device_train_batch_size=2
    )
    setup._keep_batch(arguments)
    assert arguments.gradient_accumulation_steps == divided
    printed = capsys.readouterr().out
    assert printed.startswith(said) and bool(printed) == bool(said)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2"])
def test_the_accelerate_files_use_every_gpu(name):
    """accelerate hands the word to torch's launcher. It does not replace a missing number by that of the GPUs."""
    words = ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"), "train_sft.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    args.deepspeed_fields_from_accelerate_config = ""
    prepare_deepspeed_cmd_env(args) if args.use_deepspeed else prepare_multi_gpu_env(args)
    if torch.cuda.is_available():
        assert determine_local_world_size(args.nproc_per_node) == torch.cuda.device_count()
    else:
        with pytest.raises(ValueError, match="Cuda is not available"):
            determine_local_world_size(args.nproc_per_node)


@pytest.mark.parametrize("deepspeed", [False, True])
def test_gradient_shares_are_not_measured_under_deepspeed(deepspeed):
    """DeepSpeed takes a backward pass to the hidden states for that of the step, and fails."""
    hidden = torch.ones(1, 3, 2, requires_grad=True)
    trainer = SimpleNamespace(
        policy_loss=None,
        _logs_this_step=True,
        args=SimpleNamespace(activation_offloading=False),
        is_deepspeed_enabled=deepspeed,
        gradient_shares=GradientShares(),
    )
    DetectionTrainer._record_gradients(trainer, {"iou": (2 * hidden).sum()}, hidden)
    squares = {name: square.item() for name, square in trainer.gradient_shares.squares.items()}
    assert squares == ({} if deepspeed else {"iou": 24})


@pytest.mark.parametrize("words", [[], ["--detect_anomaly", "true"]])
def test_anomaly_detection_is_on_during_training_only_if_the_recipe_says_so(words):
    weight, found = torch.ones(1, requires_grad=True), []

    def train(resume_from_checkpoint):
        try:
            (weight * torch.nan).sqrt().backward()
        except RuntimeError as error:
            found.append(str(error))

    callbacks = [InterruptCallback()]
    handler = SimpleNamespace(callbacks=callbacks)
    trainer = SimpleNamespace(
        train=train, callback_handler=handler, padding=PaddingCount(), summed=lambda counts: counts
    )
    run_training(trainer, load_recipe(["--config", "tiny_nutrition_qlora", *words]), None)
    assert len(found) == bool(words) and all("returned nan values" in error for error in found)
    assert not torch.is_anomaly_enabled()


def test_the_first_batch_is_kept_as_text_only():
    """Its images would stay in GPU memory for the whole run."""
    words = torch.tensor([[5, 7, 9]])
    pixels = torch.zeros(4, 8)
    released = weakref.ref(pixels)
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words, "pixel_values": pixels}
    batches, callbacks = [batch], []
    processor = SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: f"{ids.tolist()}"), image_token="<image>")
    trainer = SimpleNamespace(
        is_world_process_zero=lambda: True,
        get_train_dataloader=lambda: iter(batches.pop, None),
        add_callback=callbacks.append,
        eval_dataset=None,
        processing_class=processor,
        model=None,
    )
    del pixels, batch
    record_start(trainer, load_recipe(["--config", "tiny_nutrition_qlora"]), [])
    gc.collect()
    assert released() is None
    assert "--- example 0\n[5, 7, 9]" in callbacks[0].begin.args[-1]


@pytest.mark.parametrize(
    ("mode", "teacher_forced", "sampled"),
    [("teacher_forced", True, False), ("policy", False, True), ("both", True, True)],
)
def test_the_loss_weights_apply_to_the_target_response_to_sampled_responses_or_to_both(mode, teacher_forced, sampled):
    words = ["--iou_loss_weight", "1", "--fp_loss_weight", "0.5", "--fn_loss_weight", "2", "--end_token_weight", "3"]
    words += ["--grounding_samples", "5", "--grounding_every", "7"] if sampled else ["--box_loss", "l1"]
    box_losses, policy_loss = setup_losses.choose_losses(
        load_recipe(["--config", "tiny_nutrition_qlora", *words, "--grounding_mode", mode])
    )
    weights = (1, 0.5, 2) if teacher_forced else (0, 0, 0)
    assert (box_losses.iou, box_losses.fp, box_losses.fn, box_losses.end_token) == (*weights, 3)
    assert box_losses.box_loss == ("giou" if sampled else "l1")
    assert (policy_loss is not None) == sampled
    if sampled:
        assert (policy_loss.weights.largest, policy_loss.samples, policy_loss.every) == (2, 5, 7)


def test_without_weights_there_are_no_further_losses():
    assert setup_losses.choose_losses(load_recipe(["--config", "tiny_nutrition_qlora"])) == (None, None)


@pytest.mark.parametrize(
    ("patience", "splits", "stops"),
    [
        (1, {"train": [{}], "validation": [{}]}, True),
        (None, {"train": [{}], "validation": [{}]}, False),
        (1, {"train": [{}], "validation": []}, False),
        (1, {"train": [{}]}, False),
    ],
)
def test_early_stopping_needs_a_patience_and_validation_images(patience, splits, stops):
    recipe = SimpleNamespace(options=SimpleNamespace(early_stopping_patience=patience))
    assert setup.stops_early(recipe, splits) is stops
