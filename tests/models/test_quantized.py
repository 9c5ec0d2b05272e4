"""merge_adapter.py --quantize: a smaller model that finds the same boxes, or none."""

import json
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch

import merge_adapter
from boxtune import Detector
from boxtune.answers.grounding import Grounding
from boxtune.inference import quantized_check
from boxtune.inference.quantized_check import moved_boxes
from boxtune.models.describing import quantized_modules
from tests.helpers.training import train
from tests.helpers.whole_model import write_whole_model


@pytest.fixture(scope="module")
def whole(squares, tmp_path_factory) -> Path:
    return write_whole_model(tmp_path_factory.mktemp("whole") / "final", squares)


def test_a_model_that_does_not_fit_is_not_quantized_unchecked(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quantized_check, "fits_memory", lambda folder, precision: False)
    with pytest.raises(SystemExit) as stopped:
        merge_adapter.main(["--ckpt", str(whole), "--quantize", "int8", "--out", str(tmp_path / "small")])
    assert stopped.value.code == 2 and "does not fit into the free memory" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "layer"), [("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)])
def test_a_whole_model_becomes_a_smaller_one_that_detects(whole, tmp_path, capsys, method, layer):
    out = tmp_path / "small"
    words = ["--ckpt", whole, "--quantize", method, "--out", out, "--samples", "2", "--min-box-agreement", "0"]
    merge_adapter.main([str(word) for word in words])
    assert f"quantized model: {out}" in capsys.readouterr().out
    report = json.loads((out / "merge_report.json").read_text())["quantized"]
    assert report["method"] == method and report["agrees"] and 0 < report["logit_difference"] < 0.5
    assert report["bytes"]["quantized"] < report["bytes"]["model"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]  # nothing temporary is left

    detector = Detector.from_pretrained(out)
    kinds = {type(module) for path, module in detector.model.named_modules() if "language_model.layers" in path}
    assert layer in kinds and torch.nn.Linear not in kinds
    counted = quantized_modules(detector.model)
    assert counted["vision"]["full"] > 0 and counted["vision"]["nf4"] == 0  # the tower keeps its precision
    image = next((Path(Grounding.load(whole).data_dir).parent / "images").iterdir())
    assert detector(image).text == detector(image).text


def test_a_copy_whose_boxes_move_too_much_is_deleted(whole, tmp_path, monkeypatch, capsys):
    found = {"agrees": False, "box_agreement": 0.8, "bytes": {"quantized": 1, "model": 2}, "images": 2, "boxes": 5}
    found |= {"moved": {}, "lost": 0, "new": 0, "logit_difference": 0.1, "same_answers": 0, "least_box_agreement": 0.9}
    monkeypatch.setattr(merge_adapter, "check_quantized", lambda *arguments: found)
    with pytest.raises(SystemExit) as stop:
        merge_adapter.main(["--ckpt", str(whole), "--quantize", "nf4", "--out", str(tmp_path / "small")])
    assert stop.value.code == 2 and list(tmp_path.iterdir()) == []
    assert "agree by 0.800 with those in bf16, and 0.9 is required" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_is_merged_and_quantized_at_once(squares, tmp_path):
    run = train(squares, tmp_path / "run", "--save_strategy", "no")
    words = ["--quantize", "nf4", "--samples", "1", "--min-box-agreement", "0"]
    merge_adapter.main(["--ckpt", str(run / "final"), *words])
    assert sorted(path.name for path in run.glob("final*")) == ["final", "final_merged_nf4"]
    report = json.loads((run / "final_merged_nf4" / "merge_report.json").read_text())
    assert report["agrees"] and report["quantized"]["method"] == "nf4"
    with pytest.raises(SystemExit):
        merge_adapter.main(["--ckpt", str(run / "final_merged_nf4"), "--out", str(tmp_path / "x"), *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quantize", "nf4", "--min-box-agreement", "90"], "must be from 0 to 1, got 90"),
        ([], "there is nothing to merge. --quantize makes a smaller model of it"),
    ],
)
def test_wrong_arguments_are_one_message(whole, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        merge_adapter.main(["--ckpt", str(whole), *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_model_itself_is_never_replaced(whole, capsys):
    with pytest.raises(SystemExit):
        merge_adapter.main(["--ckpt", str(whole), "--quantize", "nf4", "--out", str(whole), "--overwrite"])
    assert "is the model that is to be read" in capsys.readouterr().err and (whole / "model.safetensors").is_file()


def test_moved_lost_and_new_boxes_are_counted():
    def answer(boxes_xyxy, labels):
        return {"objects": {"bbox": boxes_xyxy, "category": labels}}

    before = answer([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], ["a", "a", "a"])
    after = answer([[0, 0, 10, 10], [20, 0, 30, 6], [60, 0, 70, 10], [80, 0, 90, 10]], ["a", "a", "a", "a"])
    assert moved_boxes([before], [after]) == {
        "boxes": 3,
        "moved": {"0.95": 1, "0.75": 1, "0.5": 0},
        "lost": 1,
        "new": 2,
    }
