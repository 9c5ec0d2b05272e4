"""The recipe tiny_detection_head, from annotations to detections."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import check_recipe
import evaluate
import merge_adapter
from boxtune import Detector
from boxtune.answers.grounding import Grounding
from boxtune.answers.prediction_file import read_predictions
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.data.records import image_path
from boxtune.models.checkpoint import open_checkpoint, weights_identity
from boxtune.models.head_files import HEAD_FOLDER
from data_prep.__main__ import main as data_prep
from tests.helpers.training import log_history, train, trainer_state

TERMS = ("bbox", "giou", "objectness")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("head") / "data"
    data_prep(["nutrition", "--out", str(folder), "--num-images", "40", "--seed", "0"])
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A run of six steps, which calibrates on validation."""
    out = tmp_path_factory.mktemp("head") / "run"
    options = ["--max_steps", 6, "--save_strategy", "steps", "--save_steps", 3, "--eval_images", 4]
    options += ["--detection_trains_model", "true"]
    return train(data, out, *options, "--per_device_train_batch_size", 2, config="tiny_detection_head")


def test_from_annotations_to_detections(data, run, tmp_path, capsys):
    check_recipe.main(
        ["--config", "tiny_detection_head", "--data_dir", str(data), "--output_dir", str(tmp_path / "run")]
    )
    for row in log_history(run, 3):
        weighted = 5 * row["detection_bbox_loss"] + 2 * row["detection_giou_loss"] + row["detection_objectness_loss"]
        assert row["loss"] == pytest.approx(row["lm_loss"] + weighted, rel=1e-4)
        shares = {key for key in row if key.startswith("grad_share/")}
        assert shares == {"grad_share/lm", *(f"grad_share/detection_{name}" for name in TERMS)}
        assert row["grad_share/detection_objectness"] > 0

    # ---- evaluation by each decoder
    final, records = run / "final", read_records(data, "test")
    assert 0 < Grounding.load(final).head_threshold < 1
    assert 0 < Grounding.load(final).both_threshold < 1
    predictions = {}
    for decoder in ("text", "head", "both"):
        out = tmp_path / decoder
        evaluate.main(["--ckpt", str(final), "--decoder", decoder, "--out", str(out), "--max-new-tokens", "8"])
        predictions[decoder] = read_predictions(out / "predictions.jsonl", records)[0]
        assert json.loads((out / "metrics.json").read_text())["provenance"]["decoding"]["decoder"] == decoder
        assert all(row.get("decoder", "text") == decoder for row in predictions[decoder])
    assert all(row["text"] == "" for row in predictions["head"])
    assert [row["text"] for row in predictions["both"]] == [row["text"] for row in predictions["text"]]
    with pytest.raises(SystemExit):
        evaluate.main(["--predictions", str(tmp_path / "head"), "--data", str(data), "--reparse"])
    assert "leave out --reparse" in capsys.readouterr().err

    # ---- merged model and Detector
    merge_adapter.main(["--ckpt", str(final), "--samples", "2", "--skip-nf4"])
    merged = run / "final_merged"
    weights = [load_file(folder / HEAD_FOLDER / "model.safetensors") for folder in (final, merged)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    image = image_path(records[0], data)
    for folder in (final, merged):
        found = Detector.from_pretrained(folder)(image, decoder="head", threshold=0.001)
        assert found.labels and set(found.labels) == {"nutrition-table"}
        corners = np.asarray(found.boxes_xyxy)
        assert (corners[:, :2] >= 0).all() and (corners[:, 2:] <= [records[0]["width"], records[0]["height"]]).all()
        assert (np.diff(found.scores) <= 0).all()


def test_a_resumed_run_ends_with_the_same_head(data, run, tmp_path):
    # resumed from step 3 of the same six
    options = ["--max_steps", 6, "--save_strategy", "no", "--eval_images", 4, "--per_device_train_batch_size", 2]
    options += ["--detection_trains_model", "true"]
    options += ["--resume_from_checkpoint", run / "checkpoint-3"]
    other = train(data, tmp_path / "run", *options, config="tiny_detection_head")
    for name in ("adapter_model.safetensors", f"{HEAD_FOLDER}/model.safetensors"):
        before, after = (load_file(folder / "final" / name) for folder in (run, other))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), name


def test_the_head_writes_captions(data, tmp_path):
    """Of objects without a caption, the class is the caption."""
    options = ["--detection_caption_weight", 20, "--detection_caption_layers", 1, "--max_steps", 10]
    options += [
        "--per_device_train_batch_size",
        4,
        "--max_pixels",
        12288,
        "--save_steps",
        10,
        "--learning_rate",
        "3e-3",
    ]
    run = train(data, tmp_path / "run", *options, config="tiny_detection_head")
    losses = [row["detection_caption_loss"] for row in log_history(run, 10)[:-1]]
    assert losses[-1] < losses[0] - 0.1
    record = read_records(data, "test")[0]
    detector = Detector.from_pretrained(run / "final")
    [prediction] = detector.answer(
        [record], data_dir=data, decoding=replace(detector.grounding().decoding, decoder="head", score_threshold=0.001)
    )
    objects = prediction["objects"]
    assert len(objects["caption"]) == len(objects["bbox"]) > 0
    assert all(isinstance(text, str) for text in objects["caption"])


def test_a_checkpoint_knows_its_head(run, tmp_path):
    identity = weights_identity(open_checkpoint(str(run / "final")))
    assert "detection_head" in identity


def test_the_base_and_a_checkpoint_without_head_refuse_its_decoders(run, squares, tmp_path):
    detector = Detector.from_pretrained(run / "final")
    with detector.without_adapter() as base, pytest.raises(UserError, match="detection head"):
        base(np.zeros((64, 64, 3), dtype=np.uint8), decoder="head")
    plain = Detector.from_pretrained(train(squares, tmp_path / "plain") / "final")
    with pytest.raises(UserError, match="needs a detection head, and"):
        plain(np.zeros((64, 64, 3), dtype=np.uint8), decoder="both")
    with pytest.raises(UserError, match="ask: needs decoder text"):
        detector(np.zeros((64, 64, 3), dtype=np.uint8), decoder="head", ask="each")


def test_a_head_that_only_reads_leaves_the_text_as_without_a_head(squares, tmp_path):
    """The adapter is bit-equal: neither gradient nor clipping of the head reaches it."""
    plain = train(squares, tmp_path / "plain")
    options = ["--detection_head", "true"]
    reading = train(squares, tmp_path / "reading", *options)
    both = [load_file(run / "final" / "adapter_model.safetensors") for run in (plain, reading)]
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
    assert "grad_share/detection_bbox" not in log_history(reading)[0]


def test_the_best_checkpoint_brings_its_head(data, tmp_path):
    options = [
        "--max_steps",
        4,
        "--save_strategy",
        "steps",
        "--save_steps",
        2,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        2,
    ]
    options += [
        "--load_best_model_at_end",
        "true",
        "--metric_for_best_model",
        "eval_loss",
        "--greater_is_better",
        "false",
    ]
    # Only the head learns, so both evaluations have the same loss, and the first stays the best.
    options += ["--llm_lr", 0, "--vision_lr", 0, "--merger_lr", 0]
    run = train(data, tmp_path / "run", *options, config="tiny_detection_head")
    best = Path(trainer_state(run, 4)["best_model_checkpoint"])
    assert best.name == "checkpoint-2"
    saved, final = (load_file(folder / HEAD_FOLDER / "model.safetensors") for folder in (best, run / "final"))
    assert all(torch.equal(saved[key], final[key]) for key in saved)
    last = load_file(run / "checkpoint-4" / HEAD_FOLDER / "model.safetensors")
    assert any(not torch.equal(saved[key], last[key]) for key in saved)
