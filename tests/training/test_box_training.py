"""Training with losses on boxes: what is added to the loss, what is logged, and that nothing else changes."""

import json

import pytest
from safetensors.torch import load_file
from trl import SFTTrainer

from boxtune.data.dataset import read_records, write_dataset
from boxtune.training.trainer import DetectionTrainer
from tests.helpers.records import FAMILIES
from tests.helpers.training import WEIGHTS, train


def log_of(run) -> list[dict]:
    return json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]


def test_the_loss_is_the_weighted_sum_and_its_lm_part_is_that_of_plain_training(squares, tmp_path):
    plain = log_of(train(squares, tmp_path / "plain"))
    for row in (log := log_of(train(squares, tmp_path / "boxes", *WEIGHTS))[:2]):
        total = row["lm_loss"] + row["iou_loss"] + 0.5 * row["fp_loss"] + 2 * row["fn_loss"]
        assert row["loss"] == pytest.approx(total, abs=1e-4)
        shares = {key: value for key, value in row.items() if key.startswith("grad_share/")}
        assert set(shares) == {f"grad_share/{name}" for name in ("lm", "iou", "fp", "fn")}
        assert sum(shares.values()) == pytest.approx(1)
    assert log[0]["lm_loss"] == pytest.approx(plain[0]["loss"], abs=1e-6), "before the first step nothing may differ"
    assert "lm_loss" not in plain[0]


def test_weights_of_zero_are_plain_training_to_the_bit(squares, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(DetectionTrainer, "compute_loss", SFTTrainer.compute_loss)
        plain = load_file(train(squares, tmp_path / "plain") / "final" / "adapter_model.safetensors")
    zeros = [0 if isinstance(word, float) else word for word in WEIGHTS]
    zero = load_file(train(squares, tmp_path / "zero", *zeros) / "final" / "adapter_model.safetensors")
    assert all((plain[name] == zero[name]).all() for name in plain)


def test_end_tokens_weigh_what_the_recipe_says(squares, tmp_path):
    """An answer of none is one token that ends it and the end of the turn; the first weighs less and nothing else changes."""
    record = next(r for r in read_records(squares, "train") if not r["objects"]["bbox"])
    data = one_example(tmp_path / "data", squares, record)
    runs = {
        weight: log_of(train(data, tmp_path / str(weight), "--end_token_weight", weight))[0] for weight in (1, 0, 3)
    }
    loss = {weight: row["loss"] for weight, row in runs.items()}
    assert loss[0] < loss[1] < loss[3]
    assert loss[3] - loss[1] == pytest.approx(2 * (loss[1] - loss[0]), rel=1e-3)
    # What is left without it is the end of the turn's part.
    assert loss[0] > 0


def one_example(folder, squares, record, copies: int = 4):
    """A data set of one example under several names."""
    rows = [record | {"id": f"copy {i}", "image": str(squares / record["image"])} for i in range(copies)]
    classes, splits = ["red square", "blue square"], {"train": rows}
    write_dataset(folder, name="same", source_format="test", classes=classes, splits=splits, problems=[])
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_with_every_term(family, tiny_models, squares, tmp_path):
    run = train(
        *(squares, tmp_path / "run", *WEIGHTS, "--model_name_or_path", tiny_models[family], "--lora_vision", "false"),
        *(
            "--gradient_checkpointing",
            "true",
            "--gradient_accumulation_steps",
            2,
            "--dtype",
            "bfloat16",
            "--bf16",
            "true",
        ),
    )
    log = log_of(run)[:2]
    for row in log:
        total = row["lm_loss"] + row["iou_loss"] + 0.5 * row["fp_loss"] + 2 * row["fn_loss"]
        assert row["loss"] == pytest.approx(total, rel=0.01)  # the logged parts come out of bf16 activations
    # A step may hold empty answers alone, and then nothing to go on with; both steps do not.
    assert all(sum(row[name] for row in log) > 0 for name in ("iou_loss", "fp_loss", "fn_loss"))


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_share_a_step_by_their_tokens_boxes_and_decisions(family, tiny_models, squares, tmp_path):
    """An empty answer and a long one are a step of the same loss and gradient in one batch and in two, whatever is added."""
    records = read_records(squares, "train")
    rows = [next(r for r in records if len(r["objects"]["bbox"]) == count) for count in (0, 2)]
    rows = [row | {"image": str(squares / row["image"])} for row in rows]
    data, classes = tmp_path / "data", ["red square", "blue square"]
    write_dataset(data, name="two", source_format="test", classes=classes, splits={"train": rows}, problems=[])
    options = ("--model_name_or_path", tiny_models[family], "--load_in_4bit", "false")
    options += (*WEIGHTS, "--end_token_weight", 0.5)
    one = log_of(train(data, tmp_path / "one", *options, "--per_device_train_batch_size", 2))[0]
    two = log_of(train(data, tmp_path / "two", *options, "--gradient_accumulation_steps", 2))[0]
    shares = [f"grad_share/{name}" for name in ("lm", "iou", "fp", "fn")]
    for key in ("loss", "lm_loss", "iou_loss", "fp_loss", "fn_loss", "grad_norm", *shares):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key


def test_evaluation_measures_the_terms_and_its_loss_stays_the_lms(squares, tmp_path):
    evaluated = ("--eval_strategy", "steps", "--eval_steps", 1)
    plain = log_of(train(squares, tmp_path / "plain", *evaluated, "--learning_rate", 1e-9))
    boxes = log_of(train(squares, tmp_path / "boxes", *evaluated, "--learning_rate", 1e-9, *WEIGHTS))
    before, after = (next(row for row in log if "eval_loss" in row) for log in (plain, boxes))
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-4)
    assert after["eval_lm_loss"] == pytest.approx(after["eval_loss"], rel=0.3)  # a mean of batches, not of tokens
    assert {"eval_iou_loss", "eval_fp_loss", "eval_fn_loss"} <= set(after)
