"""Training with box losses: what they add to the loss, what is logged, and that nothing else changes."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from trl import SFTTrainer

from boxtune.data.dataset import read_records, write_dataset
from boxtune.data.records import Record
from boxtune.training.trainer import DetectionTrainer
from tests.helpers.records import FAMILIES
from tests.helpers.training import WEIGHTS, log_history, train

CLASSES = ["red square", "blue square"]


def weighted_total(row: dict) -> float:
    """The total loss of a log entry, from its terms and WEIGHTS."""
    return row["lm_loss"] + row["iou_loss"] + 0.5 * row["fp_loss"] + 2 * row["fn_loss"]


def write_training_split(folder: Path, records: list[Record], squares: Path) -> Path:
    """A dataset whose training split is these records of `squares`."""
    rows = [record | {"image": str(squares / record["image"])} for record in records]
    write_dataset(folder, name="data", source_format="test", classes=CLASSES, splits={"train": rows}, problems=[])
    return folder


def test_loss_is_weighted_sum_and_lm_loss_equals_plain_training(squares, tmp_path):
    plain = log_history(train(squares, tmp_path / "plain"))
    log = log_history(train(squares, tmp_path / "boxes", *WEIGHTS))[:2]
    for row in log:
        assert row["loss"] == pytest.approx(weighted_total(row), abs=1e-4)
        shares = {key: value for key, value in row.items() if key.startswith("grad_share/")}
        assert set(shares) == {f"grad_share/{name}" for name in ("lm", "iou", "fp", "fn")}
        assert sum(shares.values()) == pytest.approx(1)
    assert log[0]["lm_loss"] == pytest.approx(plain[0]["loss"], abs=1e-6), "the LM loss of the first step must be equal"
    assert "lm_loss" not in plain[0]


def test_zero_weights_train_the_same_adapter_as_sft_trainer(squares, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(DetectionTrainer, "compute_loss", SFTTrainer.compute_loss)
        plain = load_file(train(squares, tmp_path / "plain") / "final" / "adapter_model.safetensors")
    zeros = [0 if isinstance(word, float) else word for word in WEIGHTS]
    zero = load_file(train(squares, tmp_path / "zero", *zeros) / "final" / "adapter_model.safetensors")
    assert all((plain[name] == zero[name]).all() for name in plain)


def test_end_token_weight_scales_only_end_tokens(squares, tmp_path):
    """An empty response has two tokens: one that ends the list and one that ends the turn. Only the first is reweighted."""
    record = next(r for r in read_records(squares, "train") if not r["objects"]["bbox"])
    copies = [record | {"id": f"copy {i}"} for i in range(4)]
    data = write_training_split(tmp_path / "data", copies, squares)
    loss = {}
    for weight in (1, 0, 3):
        run = train(data, tmp_path / str(weight), "--end_token_weight", weight)
        loss[weight] = log_history(run)[0]["loss"]
    assert loss[0] < loss[1] < loss[3]
    assert loss[3] - loss[1] == pytest.approx(2 * (loss[1] - loss[0]), rel=1e-3)
    assert loss[0] > 0, "the end of the turn still has a loss"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_with_every_term(family, tiny_models, squares, tmp_path):
    options = ("--model_name_or_path", tiny_models[family], "--lora_vision", "false", "--dtype", "bfloat16")
    options += ("--bf16", "true", "--gradient_checkpointing", "true", "--gradient_accumulation_steps", 2)
    log = log_history(train(squares, tmp_path / "run", *WEIGHTS, *options))[:2]
    for row in log:
        # The logged terms are computed from bf16 activations.
        assert row["loss"] == pytest.approx(weighted_total(row), rel=0.01)
    # One step may contain only empty responses, which have no boxes and never continue. Both steps together do not.
    assert all(sum(row[name] for row in log) > 0 for name in ("iou_loss", "fp_loss", "fn_loss"))


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_do_not_depend_on_the_number_of_micro_batches(family, tiny_models, squares, tmp_path):
    """An empty response and a long one give the same losses and gradients in one batch of two and in two batches of one."""
    records = read_records(squares, "train")
    rows = [next(r for r in records if len(r["objects"]["bbox"]) == count) for count in (0, 2)]
    data = write_training_split(tmp_path / "data", rows, squares)
    options = ("--model_name_or_path", tiny_models[family], "--load_in_4bit", "false")
    options += (*WEIGHTS, "--end_token_weight", 0.5)
    one = log_history(train(data, tmp_path / "one", *options, "--per_device_train_batch_size", 2))[0]
    two = log_history(train(data, tmp_path / "two", *options, "--gradient_accumulation_steps", 2))[0]
    shares = [f"grad_share/{name}" for name in ("lm", "iou", "fp", "fn")]
    for key in ("loss", "lm_loss", "iou_loss", "fp_loss", "fn_loss", "grad_norm", *shares):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key


def test_evaluation_logs_box_losses_and_eval_loss_stays_the_lm_loss(squares, tmp_path):
    evaluated = ("--eval_strategy", "steps", "--eval_steps", 1)
    plain = log_history(train(squares, tmp_path / "plain", *evaluated, "--learning_rate", 1e-9))
    boxes = log_history(train(squares, tmp_path / "boxes", *evaluated, "--learning_rate", 1e-9, *WEIGHTS))
    before, after = (next(row for row in log if "eval_loss" in row) for log in (plain, boxes))
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-4)
    # eval_lm_loss is a mean over batches, eval_loss over tokens.
    assert after["eval_lm_loss"] == pytest.approx(after["eval_loss"], rel=0.3)
    assert {"eval_iou_loss", "eval_fp_loss", "eval_fn_loss"} <= set(after)
