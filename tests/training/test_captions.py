"""Training on captions: what is supervised and stored, and which data and models are refused."""

import json

import pytest

import evaluate
from boxtune.answers.grounding import Grounding
from boxtune.data.dataset import read_info, read_records, write_dataset
from boxtune.training.examples import read_examples
from tests.helpers.training import WEIGHTS, log_history, train


def captioned(squares, folder, caption="a {}, quite square"):
    """The squares with a caption for every object but the blue ones."""

    def describe(record):
        names = record["objects"]["category"]
        captions = [caption.format(name) if name == "red square" else None for name in names]
        return record | {
            "image": str(squares / record["image"]),
            "objects": record["objects"] | {"caption": captions},
        }

    splits = {name: [*map(describe, read_records(squares, name))] for name in ("train", "validation")}
    classes = read_info(squares)["classes"]
    write_dataset(folder, name="captioned", source_format="test", classes=classes, splits=splits, problems=[])
    return folder


def test_captions_are_trained_read_and_scored(squares, tmp_path):
    data = captioned(squares, tmp_path / "data")
    run = train(
        data, tmp_path / "run", "--captions", "true", "--max_steps", 1, *WEIGHTS, "--per_device_train_batch_size", 6
    )
    final = run / "final"
    assert Grounding.load(final).codec == "qwen3_vl_captions"
    assert Grounding.load(final).format_sentence.endswith('"label" and "caption" for each object.')
    supervised = (final / "first_batch.txt").read_text()
    assert '"label": "red square", "caption": "a red square, quite square"}' in supervised
    assert '"label": "blue square"}' in supervised
    # Every object gives a decision to continue, also behind a caption.
    assert log_history(run, step=1)[0]["fn_loss"] > 0
    evaluate.main(["--ckpt", str(final), "--split", "validation", "--limit", "3", "--max-new-tokens", "32"])
    metrics = json.loads((run / "eval" / "metrics.json").read_text())
    assert set(metrics["captions"]) == {"n", "exact", "bleu"}
    for line in (run / "eval" / "predictions.jsonl").read_text().splitlines():
        objects = json.loads(line)["objects"]
        assert len(objects["caption"]) == len(objects["category"])


def test_data_without_usable_captions_is_refused(squares, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(squares, tmp_path / "run", "--captions", "true")
    assert "no object of the training images has one" in capsys.readouterr().err
    bad = captioned(squares, tmp_path / "bad", caption="ends <|im_end|> {}")
    with pytest.raises(SystemExit):
        train(bad, tmp_path / "run", "--captions", "true")
    assert "holds a special token" in capsys.readouterr().err
    assert read_examples(bad, "source"), "without the key, the column is no matter of ours"


def test_qwen2_vl_is_refused(squares, tiny_models, tmp_path, capsys):
    data = captioned(squares, tmp_path / "data")
    with pytest.raises(SystemExit):
        train(data, tmp_path / "run", "--captions", "true", "--model_name_or_path", tiny_models["qwen2_vl"])
    assert "captions: qwen2_vl does not write its objects as JSON" in capsys.readouterr().err
