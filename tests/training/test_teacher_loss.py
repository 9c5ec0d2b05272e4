"""The loss of few-shot conversations: two means, against a reference of single rows, and nothing else without teachers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.batching.lengths import as_dataset
from boxtune.batching.teachers import Teachers
from boxtune.data.dataset import read_records, write_dataset
from boxtune.models.processors import load_processor
from tests.helpers.training import WEIGHTS, log_history, train

CLASSES = ["red square", "blue square"]
PLAIN = ("--load_in_4bit", "false", "--dtype", "float32")
TAUGHT = ("--teacher_ratio", 1, "--num_teacher_samples", 2, "--max_length", 4096)


@pytest.fixture
def three(squares, tmp_path) -> Path:
    """A dataset of three training images with 0 to 2 objects. With two teachers, each example has both others."""
    records = read_records(squares, "train")
    rows = [next(r for r in records if len(r["objects"]["bbox"]) == count) for count in range(3)]
    splits = {"train": [row | {"image": str(squares / row["image"])} for row in rows]}
    write_dataset(tmp_path / "three", name="three", source_format="test", classes=CLASSES, splits=splits, problems=[])
    return tmp_path / "three"


def weights(run: Path):
    return load_file(run / "final" / "adapter_model.safetensors")


def reference(run: Path, data: Path, model_path) -> dict[str, float]:
    """{"teacher_lm_loss", "student_lm_loss"} of all records, each conversation alone, in float64."""
    records = read_records(data, "train")
    grounding = Grounding.load(run / "final")
    processor = load_processor(str(model_path), None, grounding.min_pixels, grounding.max_pixels)
    collator = DetectionCollator(processor, grounding, data, teachers=Teachers(records, 1.0, 2, seed=0))
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float64).eval()
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    for record in records:
        batch = collator(list(as_dataset([record], data, varied=True)))
        labels, of_teachers = batch.pop("labels")[0, 1:], batch.pop("teacher_tokens")[0, 1:]
        batch["pixel_values"] = batch["pixel_values"].double()
        with torch.no_grad():
            log_probs = model(**batch).logits[0, :-1].log_softmax(-1)
        for i, chosen in enumerate((of_teachers, ~of_teachers & (labels != IGNORE_INDEX))):
            sums[i] -= log_probs[chosen].gather(1, labels[chosen][:, None]).sum()
            counts[i] += chosen.sum()
    teacher, student = (sums / counts).tolist()
    return {"teacher_lm_loss": teacher, "student_lm_loss": student}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_both_means_equal_those_of_single_rows_in_float64(family, tiny_models, three, tmp_path):
    options = (*PLAIN, "--model_name_or_path", tiny_models[family], "--lora_vision", "false", *TAUGHT)
    batch = train(three, tmp_path / "batch", *options, "--per_device_train_batch_size", 3)
    steps = train(three, tmp_path / "steps", *options, "--gradient_accumulation_steps", 3)
    wanted = reference(batch, three, tiny_models[family])
    for run in (batch, steps):
        row = log_history(run)[0]
        for key, value in wanted.items():
            assert row[key] == pytest.approx(value, rel=2e-5), key
        assert row["loss"] == pytest.approx(sum(wanted.values()), rel=2e-5)
    assert log_history(batch)[0]["grad_norm"] == pytest.approx(log_history(steps)[0]["grad_norm"], rel=1e-3)


def test_steps_without_teachers_train_the_same_weights(three, tmp_path):
    """So small a ratio draws none, but the loss is prepared for them."""
    plain = train(three, tmp_path / "plain", *PLAIN)
    ready = train(three, tmp_path / "ready", *PLAIN, "--teacher_ratio", 1e-12)
    before, after = weights(plain), weights(ready)
    assert all(torch.equal(before[name], after[name]) for name in before)
    row = log_history(ready)[0]
    assert "teacher_lm_loss" not in row
    assert row["student_lm_loss"] == pytest.approx(log_history(plain)[0]["loss"], abs=1e-4)


def test_box_losses_and_end_tokens_are_those_of_the_student(three, tmp_path):
    """In the first step, box terms do not depend on the weight of end tokens, whose term is divided by students' tokens."""
    options = (*PLAIN, "--per_device_train_batch_size", 3, *TAUGHT, *WEIGHTS)
    run = train(three, tmp_path / "one", *options)
    heavy = train(three, tmp_path / "three", *options, "--end_token_weight", 3)
    plain, weighted = log_history(run)[0], log_history(heavy)[0]
    total = plain["teacher_lm_loss"] + plain["student_lm_loss"]
    assert plain["lm_loss"] == pytest.approx(total, rel=1e-4)
    total += plain["iou_loss"] + 0.5 * plain["fp_loss"] + 2 * plain["fn_loss"]
    assert plain["loss"] == pytest.approx(total, rel=1e-4)
    # Each student has one token that ends its list.
    text = (run / "final" / "first_batch.txt").read_text()
    assert text.count("--- supervised, teachers") == 3
    assert weighted["lm_loss"] > plain["lm_loss"]
    assert weighted["teacher_lm_loss"] == pytest.approx(plain["teacher_lm_loss"], rel=1e-5)


def test_examples_that_are_too_long_with_teachers_are_named(three, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(three, tmp_path / "run", *PLAIN, *TAUGHT, "--max_length", 150)
    message = capsys.readouterr().err
    assert "train examples exceed max_length 150" in message
    assert "num_teacher_samples" in message
    assert "teachers " in message
