"""A model trained with descriptions of its classes is asked with them, and answers and is scored by the names alone."""

import json
from pathlib import Path

import pytest

import evaluate
from boxtune import Detector
from boxtune.answers.grounding import Grounding
from boxtune.data.dataset import read_records, write_dataset
from boxtune.data.questions import QUESTIONS, question, turns_for
from boxtune.data.records import SPLITS
from tests.helpers.training import train

CLASSES = ["red square", "blue square"]
DESCRIPTIONS = {"red square": "a square like a tomato"}
ASKED = "<image>Detect every red square (a square like a tomato) and blue square in the image."


@pytest.fixture(scope="module")
def described(squares, tmp_path_factory) -> Path:
    """The squares, asked for with a description of one class."""
    folder = tmp_path_factory.mktemp("described") / "data"
    turns = turns_for(CLASSES, descriptions=DESCRIPTIONS)
    splits = {split: [record | {"messages": turns} for record in read_records(squares, split)] for split in SPLITS}
    write_dataset(
        folder, name="d", source_format="x", classes=CLASSES, splits=splits, problems=[], descriptions=DESCRIPTIONS
    )
    return folder


@pytest.fixture(scope="module")
def run(described, tmp_path_factory) -> Path:
    options = ["--negative_questions", "0.2", "--prompt_variety", "true", "--learning_rate", "1e-3"]
    return train(described, tmp_path_factory.mktemp("run") / "run", *options)


def test_drawn_questions_hold_the_descriptions_too(run):
    grounding = Grounding.load(run / "final")
    assert grounding.descriptions == DESCRIPTIONS and grounding.questions[0] == ASKED
    groups = [CLASSES, *([name] for name in CLASSES)]
    wanted = {question(group, wording, DESCRIPTIONS) for group in groups for wording in QUESTIONS}
    assert {*grounding.questions} == wanted
    assert not any("(" in text for text in wanted if "red" not in text)


def test_evaluation_and_detection_ask_as_in_training(run, described, tmp_path, capsys):
    common = ["--ckpt", str(run / "final"), "--max-new-tokens", "48"]
    evaluate.main([*common, "--out", str(tmp_path / "eval")])
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert [*metrics["per_class"]] == CLASSES
    images = tmp_path / "images.txt"
    images.write_text("\n".join(record["image"] for record in read_records(described, "test")[:2]))
    evaluate.main([*common, "--images", str(images), "--out", str(tmp_path / "found")])
    assert "never trained on" not in capsys.readouterr().err
    evaluate.main([*common, "--images", str(images), "--classes", "star", "--out", str(tmp_path / "other")])
    assert "never trained on, such as '<image>Detect every star in the image.'" in capsys.readouterr().err

    detector = Detector.from_pretrained(run / "final", max_new_tokens=48)
    found = detector(images.read_text().splitlines())
    written = (tmp_path / "found" / "predictions.jsonl").read_text().splitlines()
    scores = [json.loads(line)["objects"]["score"] for line in written]
    assert any(scores) and sorted(detections.scores.tolist() for detections in found) == sorted(scores)
    assert detector.classes == CLASSES
