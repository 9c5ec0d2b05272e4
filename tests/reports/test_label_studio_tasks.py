"""Tasks for Label Studio: what `data_prep labelstudio` reads back from them."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxtune.data.dataset import read_info, read_records
from boxtune.reports.label_studio_tasks import (
    Control,
    document_root,
    labelling_config,
    local_address,
    make_task,
    rectangles,
)
from data_prep.__main__ import main as data_prep

SIZE = (641, 479)  # sides of which one percent is no whole number of pixels
BOXES = [[0, 0, 641, 479], [12.25, 100, 333.5, 471.125], [640, 0, 641, 1]]
OBJECTS = {"bbox": BOXES, "category": ["cat", "dog & owl", "cat"], "score": [0.9, 0.5, 0.1]}


@pytest.fixture
def images(tmp_path):
    """Two images in folders of one folder, with a space and an accent in their names."""
    paths = [tmp_path / "photos" / "a b" / "é #1.png", tmp_path / "photos" / "b" / "x.png"]
    for shade, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        Image.new("L", SIZE, shade).save(path)
    return paths


def converted(tasks: list[dict], folder: Path, images: Path) -> list[dict]:
    """The records that `data_prep labelstudio` makes of the tasks."""
    (folder / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    words = ["labelstudio", folder / "export.json", "--images", images, "--out", folder / "data", "--overwrite"]
    data_prep(list(map(str, words)))
    splits = read_info(folder / "data")["splits"]
    return [record for split in splits for record in read_records(folder / "data", split)]


def submitted(task: dict) -> dict:
    """The task as Label Studio exports it after an annotator submitted the prediction unchanged."""
    return task | {"annotations": [{"result": task["predictions"][0]["result"], "was_cancelled": False}]}


def test_boxes_that_an_annotator_submits_unchanged_come_back_as_they_were(images, tmp_path):
    root = document_root(images)
    tasks = [make_task(local_address(path, root), SIZE, OBJECTS) for path in images]
    records = converted([submitted(task) for task in tasks], tmp_path, root)
    assert len(records) == 2
    for record in records:
        assert record["objects"]["category"] == OBJECTS["category"]
        assert np.array(record["objects"]["bbox"]) == pytest.approx(np.array(BOXES), abs=1e-9)
        assert Path(record["image"]) in images
    assert not (tmp_path / "data" / "problems.jsonl").read_text()  # such as a box clipped at the border


def test_boxes_given_as_annotations_need_no_annotator(images, tmp_path):
    root = document_root(images)
    [record] = converted([make_task(local_address(images[0], root), SIZE, annotated=OBJECTS)], tmp_path, root)
    assert np.array(record["objects"]["bbox"]) == pytest.approx(np.array(BOXES), abs=1e-9)


def test_predictions_that_nobody_looked_at_are_no_ground_truth(images, tmp_path):
    root = document_root(images)
    looked_at, other = (make_task(local_address(path, root), SIZE, OBJECTS) for path in images)
    del other["annotations"]
    records = converted([submitted(looked_at), other], tmp_path, root)
    assert [Path(record["image"]) for record in records] == images[:1]
    [problem] = (tmp_path / "data" / "problems.jsonl").read_text().splitlines()
    assert json.loads(problem)["kind"] == "no_annotation"


def test_tasks_can_be_sorted_by_the_mean_score():
    predicted = {"bbox": BOXES[:2], "category": ["cat", "cat"], "score": [0.9, 0.5]}
    assert make_task("a.png", SIZE, predicted)["predictions"][0]["score"] == pytest.approx(0.7)
    empty = make_task("a.png", SIZE, {"bbox": [], "category": [], "score": []})["predictions"][0]
    assert (empty["score"], empty["result"]) == (None, [])


def test_regions_belong_to_the_controls_of_the_labelling_configuration():
    control = Control("boxes", "photo", "photo_url")
    config = ET.fromstring(labelling_config(["cat", 'a "b" & <c>'], control))
    image, labels = config.find("Image"), config.find("RectangleLabels")
    [first, *_] = rectangles(OBJECTS, SIZE, control)
    assert labels.attrib == {"name": first["from_name"], "toName": first["to_name"]} and first["to_name"] == "photo"
    assert image.attrib == {"name": "photo", "value": "$photo_url"}
    assert [label.get("value") for label in labels] == ["cat", 'a "b" & <c>']
    assert make_task("a.png", SIZE, control=control, extra={"id": "x"})["data"] == {"photo_url": "a.png", "id": "x"}


def test_label_studio_accepts_the_tasks(images):
    """Its own checks, if its package is installed."""
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    project = interface.LabelInterface(labelling_config(["cat", "dog & owl"]))
    task = make_task(local_address(images[0], document_root(images)), SIZE, OBJECTS, OBJECTS)
    assert project.validate_task({"data": task["data"]})
    assert project.validate_prediction(task["predictions"][0], return_errors=True) == []
    assert project.validate_annotation(task["annotations"][0])
    wrong = make_task("a.png", SIZE, OBJECTS | {"category": ["cow"] * 3})["predictions"][0]
    assert project.validate_prediction(wrong, return_errors=True)
