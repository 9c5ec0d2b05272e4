"""Comparing two runs: equal runs have no difference, better boxes win, and runs on different images are rejected."""

import json
import re
import shutil

import numpy as np
import pytest

import evaluate
from boxtune.answers.predictions import make_prediction
from boxtune.data.dataset import read_records
from boxtune.metrics.comparison import VALUES
from boxtune.reports.comparison import comparison_table


@pytest.fixture
def runs(squares, tmp_path):
    """{name: run folder} with predictions and metrics: `good` is exact, `poor` is shifted by half the width of each box."""
    records, folders = read_records(squares, "test"), {}
    for name, shift in (("good", 0), ("poor", 0.5)):
        folders[name] = tmp_path / name
        (folders[name] / "eval").mkdir(parents=True)
        lines = []
        for record in records:
            size = (record["height"], record["width"])
            line = make_prediction(record, "qwen3_vl", size, "[]", 0.1)
            boxes = [
                [x0 + shift * (x1 - x0), y0, x1 + shift * (x1 - x0), y1] for x0, y0, x1, y1 in record["objects"]["bbox"]
            ]
            line["objects"] = {"bbox": boxes, "category": record["objects"]["category"], "score": [1.0] * len(boxes)}
            lines.append(json.dumps(line) + "\n")
        path = folders[name] / "eval" / "predictions.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        evaluate.main(["--predictions", str(path), "--data", str(squares), "--json"])
    return folders


def comparison(*words, capsys) -> dict:
    capsys.readouterr()
    evaluate.main(["--compare", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def error_of(*words, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--compare", *map(str, words)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_run_has_no_difference_to_itself(runs, tmp_path, capsys):
    result = comparison(runs["poor"], runs["poor"], "--out", tmp_path / "out", capsys=capsys)
    for key, row in result["values"].items():
        assert row["A"] == row["B"] and row["difference"] == 0 and row["interval"] == [0, 0], key
    assert result["outcome"] == {"won": 0, "lost": 0, "tied": 6} and result["images"] == []
    assert "No image differs" in (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")


def test_better_boxes_win_on_images_with_objects(runs, squares, capsys):
    result = comparison(runs["poor"], runs["good"] / "eval" / "predictions.jsonl", capsys=capsys)
    assert (result["split"], result["data"]) == ("test", str(squares))
    empty = sum(not record["objects"]["bbox"] for record in read_records(squares, "test"))
    assert result["outcome"] == {"won": 6 - empty, "lost": 0, "tied": empty}
    for side, name in (("A", "poor"), ("B", "good")):
        metrics = json.loads((runs[name] / "eval" / "metrics.json").read_text(encoding="utf-8"))
        metrics |= metrics["matching"]
        assert {key: row[side] for key, row in result["values"].items()} == {
            key: metrics[key] for key in result["values"]
        }
    assert result["values"]["AP50"]["interval"][0] > 0 and result["values"]["fn"]["interval"][1] < 0
    out = runs["good"] / "eval"
    text = (out / "comparison.json").read_text(encoding="utf-8")
    assert json.loads(text) == result and text.startswith('{\n  "')
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2 * (6 - empty) and not re.search(r"https?:", page)
    assert "The 95 % interval comes from 300 bootstrap draws of the images" in page
    shown = [f"{row['id']}: ground truth and predictions of {run}" for row in result["images"] for run in "AB"]
    assert re.findall('alt="(.*?)"', page) == shown
    errors = [max(row["errors"]) for row in result["images"]]
    assert errors == sorted(errors, reverse=True)
    back = comparison(runs["good"], runs["poor"], capsys=capsys)
    assert back["outcome"]["lost"] == 6 - empty
    assert back["values"]["f1"]["difference"] == -result["values"]["f1"]["difference"]


def test_an_interval_around_zero_has_no_minus_zero():
    counts = {key: {"A": 3, "B": 3, "difference": 0, "interval": [-0.4, 0.4]} for key in VALUES}
    assert set(comparison_table({"values": counts}).columns[4].cells) == {"+0 to +0"}


def test_runs_that_cannot_be_compared_are_rejected(runs, squares, tmp_path, capsys):
    shorter = tmp_path / "shorter.jsonl"
    lines = (runs["good"] / "eval" / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    shorter.write_text("".join(lines[1:]), encoding="utf-8")
    assert "give --data DIR" in error_of(shorter, shorter, capsys=capsys)
    message = error_of(runs["good"], shorter, "--data", squares, capsys=capsys)
    assert f"{json.loads(lines[0])['id']}: not in {shorter}" in message
    (tmp_path / "untried").mkdir()
    message = error_of(tmp_path / "nowhere", tmp_path / "untried", capsys=capsys)
    assert "To create predictions: evaluate.py --ckpt DIR" in message
    assert f"--compare {str(tmp_path / 'nowhere')!r}: no such file or folder" in message
    assert f"neither {tmp_path / 'untried'} nor {tmp_path / 'untried' / 'eval'} contains predictions.jsonl" in message
    other = tmp_path / "other"
    shutil.copytree(runs["good"], other)
    metrics = json.loads((other / "eval" / "metrics.json").read_text(encoding="utf-8"))
    metrics["provenance"] |= {"data": "data/elsewhere"}
    (other / "eval" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "contain no predictions; evaluate both" in error_of(empty, empty, "--data", squares, capsys=capsys)
    message = error_of(runs["good"], other, capsys=capsys)
    assert "data/elsewhere" in message and str(squares) in message and "give --data" in message
    evaluate.main(["--compare", str(runs["good"]), str(other), "--data", str(squares), "--out", str(tmp_path / "out")])
    assert "B wins 0" in capsys.readouterr().out


def test_missing_image_files_do_not_change_the_numbers(runs, squares, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    path = data / "test.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("/images/", "/gone/"), encoding="utf-8")
    result = comparison(runs["poor"], runs["good"], "--data", data, "--out", tmp_path / "out", capsys=capsys)
    assert np.isfinite(result["values"]["AP"]["difference"])
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert page.count("image file missing or unreadable") == 2 * len(result["images"])
