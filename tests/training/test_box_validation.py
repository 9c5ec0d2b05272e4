"""Box metrics during training: they do not change training, and they can select the best checkpoint."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train_sft
from boxtune.answers import calibration
from boxtune.answers.grounding import Grounding
from boxtune.training import run as training_run
from boxtune.training.box_validation import LIBRARY_METRICS, METRICS
from tests.helpers.training import log_history, train, trainer_state


def losses_and_norms(log: list[dict]) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each logged training step."""
    return [(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]


def test_predicting_boxes_during_training_changes_no_step(squares, tmp_path):
    """Generation leaves dropout, caches and random numbers unchanged."""
    steps = []
    for count in (0, 4):
        options = ("--eval_images", count, "--max_steps", 4, "--eval_strategy", "steps", "--eval_steps", 1)
        log = log_history(train(squares, tmp_path / f"run{count}", *options, "--lora_dropout", 0.1), step=4)
        steps.append(losses_and_norms(log))
        assert any("eval_AP50" in entry for entry in log) == bool(count)
    assert len(steps[0]) == 4 and steps[0] == steps[1]


def test_evaluation_does_not_change_4_bit_training(squares, tmp_path):
    """This includes CPUs whose inference kernels use another weight layout, dropout and gradient checkpointing."""
    steps, weights = [], []
    for strategy in ("no", "steps"):
        options = (
            "--eval_strategy",
            strategy,
            "--eval_steps",
            1,
            "--eval_images",
            2,
            "--max_steps",
            3,
            "--lora_dropout",
            0.1,
        )
        options += ("--gradient_checkpointing", "true", "--learning_rate", 1e-3, "--warmup_steps", 0)
        run = train(squares, tmp_path / strategy, *options)
        steps.append(losses_and_norms(log_history(run, step=3)))
        weights.append(load_file(run / "final" / "adapter_model.safetensors"))
    assert len(steps[0]) == 3 and steps[0] == steps[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class RunEndError(Exception):
    """Ends a run before it trains."""


def state_of(model: torch.nn.Module) -> list:
    """What training must find as it left it."""
    modules = [(module.training, getattr(module, "gradient_checkpointing", None)) for module in model.modules()]
    configs = model.config.to_dict(), model.config.get_text_config().use_cache, model.generation_config.to_dict()
    weights = [(weight.requires_grad, weight.dtype, weight.double().sum().item()) for weight in model.parameters()]
    numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return [modules, configs, weights, numbers]


def test_evaluation_leaves_the_state_of_training(squares, tmp_path, monkeypatch):
    def inspect(trainer, recipe, resume_from):
        trainer.model.train()
        trainer.model.base_model.model.model.visual.eval()  # a part that does not train
        before = state_of(trainer.model)
        assert "eval_AP50" in trainer.evaluate()
        for one, two in zip(before, state_of(trainer.model), strict=True):
            assert one == two
        raise RunEndError

    monkeypatch.setattr(train_sft, "run_training", inspect)
    with pytest.raises(RunEndError):
        train(
            squares,
            tmp_path / "run",
            "--eval_images",
            2,
            "--gradient_checkpointing",
            "true",
            "--load_in_4bit",
            "false",
            "--disable_tqdm",
            "true",
        )


def test_box_metrics_in_training_equal_those_of_evaluate(squares, tmp_path):
    options = ("--eval_strategy", "steps", "--eval_steps", 2, "--load_best_model_at_end", "true")
    options += ("--metric_for_best_model", "eval_mean_iou", "--per_device_eval_batch_size", 2, "--eval_images", 8)
    run = train(squares, tmp_path / "run", *options)
    state = trainer_state(run)
    (found,) = [entry for entry in state["log_history"] if "eval_AP50" in entry]
    assert state["best_metric"] == found["eval_mean_iou"]
    logged = {key.removeprefix("eval_") for key in found if key.startswith("eval_")}
    assert logged == {*METRICS, *LIBRARY_METRICS} - {"aux_loss"}, "the names that metric_for_best_model accepts"
    evaluate.main(["--ckpt", str(run / "final"), "--split", "validation", "--batch-size", "2"])
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    matching = metrics["matching"]
    wanted = [metrics["AP"], metrics["AP50"], matching["f1"], matching["mean_iou_gt"], matching["fp"], matching["fn"]]
    assert [found[f"eval_{key}"] for key in ("AP", "AP50", "f1", "mean_iou", "fp", "fn")] == wanted


def test_training_stops_early_when_box_metrics_stop_improving(squares, tmp_path):
    options = ("--learning_rate", 1e-12, "--max_steps", 6, "--eval_images", 2, "--load_best_model_at_end", "true")
    options += ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    options += ("--metric_for_best_model", "eval_AP50", "--early_stopping_patience", 2)
    run = train(squares, tmp_path / "run", *options)
    state = trainer_state(run, step=3)
    assert [entry["eval_AP50"] for entry in state["log_history"] if "eval_AP50" in entry] == [state["best_metric"]] * 3
    assert state["best_global_step"] == 1 and not (run / "checkpoint-4").exists()


def test_calibration_fitted_in_training_is_used_by_evaluate(squares, tmp_path, monkeypatch):
    """Six images contain too few boxes for a fit, so `fit`, which has its own tests, is replaced."""
    fitted = []
    monkeypatch.setattr(training_run, "fit", lambda scores, hits: fitted.append((scores, hits)) or [2.0, 0.5])
    run = train(squares, tmp_path / "run", "--eval_images", 6)
    ((scores, hits),) = fitted
    assert len(scores) == len(hits) > 0 and len(set(scores)) > 1
    slope, intercept = Grounding.load(run / "final").calibration
    evaluate.main(["--ckpt", str(run / "final"), "--split", "train"])
    lines = [json.loads(line) for line in (run / "eval" / "predictions.jsonl").read_text().splitlines()]
    objects = [line["objects"] for line in lines if line["objects"]["category"]]
    raw = [score for each in objects for score in each["score_product"]]
    score = [score for each in objects for score in each["score"]]
    assert score == pytest.approx(calibration.calibrate(raw, [slope, intercept]), abs=2e-6)
    assert score == [value for each in objects for value in each["score_calibrated"]]
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    assert metrics["score_source"] == "calibrated"
    assert sum(row["objects"] for row in metrics["calibration"]["bins"]) == len(score)


def test_selecting_the_best_model_by_a_box_metric_requires_eval_images(squares, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train(squares, tmp_path / "run", "--metric_for_best_model", "eval_AP50", "--eval_images", 0)
    assert stop.value.code == 2
    assert "AP50 is measured only if eval_images is above 0" in capsys.readouterr().err


def test_selecting_the_best_model_by_a_box_metric_requires_validation_objects(squares, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    records = [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]
    for record in records:
        record["objects"]["ignore"] = [True] * len(record["objects"]["bbox"])
    (data / "validation.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ("--eval_strategy", "steps", "--eval_steps", 1, "--eval_images", 4, "--metric_for_best_model", "AP")
    with pytest.raises(SystemExit) as stop:
        train(data, tmp_path / "run", *options)
    assert stop.value.code == 2
    assert "AP is undefined, because the 4 sampled validation images contain no objects" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
