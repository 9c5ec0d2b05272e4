"""data_prep review: the list, the page and the tasks, and the way of a correction back into the dataset."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from boxtune.data.boxes import box_iou
from boxtune.data.dataset import write_dataset
from data_prep.__main__ import main
from tests.helpers.records import ROOT, make_record
from tests.helpers.report_page import Page
from tests.helpers.sources import failure, make_image, prepared

CLASSES = ["cat", "dog"]
BOXES = [[10, 12, 40, 44], [60, 10, 90, 41], [12.5, 50, 41, 79]]
TRUE = [*zip(BOXES, ["cat", "dog", "cat"], strict=True)]


def line(record, objects, **changes):
    """A line of predictions.jsonl with these (box, class) of the score 0.9."""
    columns = {
        "bbox": [box for box, _ in objects],
        "category": [label for _, label in objects],
        "score": [0.9] * len(objects),
    }
    return {
        "id": record["id"], "image": record["image"], "width": 100, "height": 80, "codec": None, "input_size": None,
        "text": "", "objects": columns, "problems": [], "seconds": None, **changes,
    }  # fmt: skip


@pytest.fixture
def reviewed(tmp_path):
    """Ten images in folders, with the same true objects, and one file of perfect predictions. Four labels are wrong: in image 1
    one is missing, in 2 one is spurious, in 3 one is moved, in 4 one has the wrong class. Image 5 has an ignored object."""
    wrong = {
        1: TRUE[1:],
        2: [*TRUE, ([70, 55, 95, 75], "dog")],
        3: [([20, 12, 50, 44], "cat"), *TRUE[1:]],
        4: [TRUE[0], (BOXES[1], "cat"), TRUE[2]],
    }
    records = []
    for number in range(10):
        path = make_image(tmp_path / "photos" / f"day {number % 2}" / f"{number}.png")
        name = f"day {number % 2}/{number}"
        records.append(make_record(name, str(path), 100, 80, wrong.get(number, TRUE), classes=CLASSES))
    records[5]["objects"]["ignore"][2] = True
    write_dataset(
        tmp_path / "data",
        name="pets",
        source_format="test",
        classes=CLASSES,
        splits={"train": records[6:], "test": records[:6]},
        problems=[],
    )
    lines = "".join(json.dumps(line(record, TRUE)) + "\n" for record in records)
    (tmp_path / "predictions.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def review(folder: Path, *words: object) -> dict:
    words = words or ("--predictions", folder / "predictions.jsonl")
    main(["review", str(folder / "data"), *map(str, words), "--out", str(folder / "out")])
    return json.loads((folder / "out" / "review.json").read_text(encoding="utf-8"))


def test_the_four_planted_errors_are_listed_with_what_to_change(reviewed, capsys):
    found = review(reviewed)
    entries = {entry["kind"]: entry for entry in found["candidates"]}
    assert len(found["candidates"]) == 4
    assert {kind: (entry["id"], entry["split"], entry["position"]) for kind, entry in entries.items()} == {
        "missing": ("day 1/1", "test", None),
        "spurious": ("day 0/2", "test", 3),
        "moved": ("day 1/3", "test", 0),
        "swapped": ("day 0/4", "test", 1),
    }
    assert entries["missing"]["suggestion"] == {"bbox": BOXES[0], "category": "cat"}
    assert entries["missing"]["label"] is None
    assert entries["spurious"]["suggestion"] is None
    assert entries["moved"]["suggestion"]["bbox"] == BOXES[0]
    assert entries["moved"]["label"]["bbox"] == [20, 12, 50, 44]
    assert (entries["swapped"]["label"]["category"], entries["swapped"]["suggestion"]["category"]) == ("cat", "dog")
    printed = capsys.readouterr().out
    assert "10 of 10 images have predictions" in printed
    assert "1 swapped: a label of the wrong class" in printed
    assert "images of the train split are reviewed" in printed


def test_the_page_shows_every_candidate(reviewed):
    entries = review(reviewed)["candidates"]
    page = Page((reviewed / "out" / "review.html").read_text(encoding="utf-8"))
    assert [image["alt"] for image in page.all("img")] == [f"{entry['kind']} in {entry['id']}" for entry in entries]
    assert "cat → dog" in page.text
    assert "1 of 1 checkpoint" in page.text


def submitted(task: dict, version: str) -> dict:
    """The task as exported after an annotator submitted one of its predictions unchanged."""
    (chosen,) = [prediction for prediction in task["predictions"] if prediction["model_version"] == version]
    return task | {"annotations": [{"result": chosen["result"], "was_cancelled": False}]}


@pytest.mark.parametrize("version", ["labels as they are", "suggested corrections"])
def test_corrections_come_back_into_the_dataset(reviewed, tmp_path, capsys, version):
    """review → Label Studio → data_prep labelstudio → merge --replace."""
    entries = review(reviewed)["candidates"]
    tasks = json.loads((reviewed / "out" / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["boxtune_id"] for task in tasks] == [entry["id"] for entry in entries]
    assert (reviewed / "out" / "labels.xml").read_text(encoding="utf-8").count("<Label ") == 2
    (tmp_path / "export.json").write_text(json.dumps([submitted(task, version) for task in tasks]), encoding="utf-8")
    words = ["labelstudio", tmp_path / "export.json", "--images", reviewed / "photos", "--out", tmp_path / "corrected"]
    prepared(capsys, *words)
    words = ["merge", reviewed / "data", tmp_path / "corrected", "--out", tmp_path / "joined", "--replace"]
    records, _, _ = prepared(capsys, *words)
    assert len(records) == 10
    for name, record in records.items():
        assert record["split"] == ("train" if int(name[-1]) > 5 else "test")
        assert record["messages"][0]["content"] == "<image>Detect every cat and dog in the image."
        if version == "suggested corrections":
            objects = sorted(zip(record["objects"]["bbox"], record["objects"]["category"], strict=True))
            for (box, label), (true_box, true_label) in zip(objects, sorted(TRUE), strict=True):
                assert label == true_label
                assert box_iou([box], [true_box])[0, 0] > 0.9999
    if version == "labels as they are":
        assert records["day 0/4"]["objects"]["category"] == ["cat", "cat", "cat"]
        assert len(records["day 0/2"]["objects"]["bbox"]) == 4


def test_ignored_objects_stay_ignored(reviewed, tmp_path, capsys):
    lines = (reviewed / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    changed = [json.loads(text) for text in lines]
    changed[5]["objects"]["category"][0] = "dog"
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(one) + "\n" for one in changed), encoding="utf-8")
    review(reviewed, "--predictions", tmp_path / "other.jsonl")
    tasks = json.loads((reviewed / "out" / "tasks.json").read_text(encoding="utf-8"))
    export = [submitted(task, "labels as they are") for task in tasks]
    (tmp_path / "export.json").write_text(json.dumps(export), encoding="utf-8")
    words = ["labelstudio", tmp_path / "export.json", "--images", reviewed / "photos", "--out", tmp_path / "corrected"]
    records, _, _ = prepared(capsys, *words)
    assert records["day 1/5"]["objects"]["ignore"] == [False, False, True]


def test_an_image_is_judged_by_the_files_that_have_it(reviewed, tmp_path):
    lines = (reviewed / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "first.jsonl").write_text("".join(lines[:4]), encoding="utf-8")
    (tmp_path / "second.jsonl").write_text("".join(lines[3:8]), encoding="utf-8")
    found = review(reviewed, "--predictions", tmp_path / "first.jsonl", tmp_path / "second.jsonl")
    assert (found["images"], found["reviewed"]) == (10, 8)
    asked = {entry["id"]: (entry["checkpoints"], entry["of_checkpoints"]) for entry in found["candidates"]}
    assert asked["day 1/1"] == (1, 1)
    assert asked["day 1/3"] == (2, 2)


def test_limit_and_split(reviewed, tmp_path):
    lines = (reviewed / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "test.jsonl").write_text("".join(lines[:6]), encoding="utf-8")
    found = review(reviewed, "--predictions", tmp_path / "test.jsonl", "--split", "test", "--limit", 2)
    assert (found["images"], len(found["candidates"])) == (6, 4)
    assert len(json.loads((reviewed / "out" / "tasks.json").read_text(encoding="utf-8"))) == 2
    page = Page((reviewed / "out" / "review.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 2
    assert "The first 2 of 4 candidates" in page.text


def test_only_objects_that_were_asked_for_are_reviewed(reviewed, tmp_path):
    """Image 4's question asks for dogs only, so a cat that is not found is no error."""
    path = reviewed / "data" / "test.jsonl"
    records = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    records[0]["messages"] = [
        {"role": "user", "content": "<image>Detect every dog in the image."},
        {"role": "assistant", "content": "<boxes:dog>"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    lines = (reviewed / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    changed = [json.loads(text) for text in lines]
    changed[0] = line(records[0], [TRUE[1]])
    (tmp_path / "dogs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in changed), encoding="utf-8")
    found = review(reviewed, "--predictions", tmp_path / "dogs.jsonl")
    assert "day 0/0" not in [entry["id"] for entry in found["candidates"]]


def test_nothing_suspicious(reviewed, tmp_path, capsys):
    records = [
        json.loads(text) for text in (reviewed / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps(line(one, TRUE)) + "\n" for one in records), encoding="utf-8"
    )
    assert review(reviewed, "--predictions", tmp_path / "train.jsonl")["candidates"] == []
    assert json.loads((reviewed / "out" / "tasks.json").read_text(encoding="utf-8")) == []
    assert "Label Studio: " not in capsys.readouterr().out


def test_errors(reviewed, tmp_path, capsys):
    words = ["review", reviewed / "data", "--predictions", reviewed / "predictions.jsonl", "--out", tmp_path / "new"]
    assert "--limit 0 must be at least 1" in failure(capsys, *words, "--limit", 0)
    assert "is not in this split" in failure(capsys, *words, "--split", "test")
    missing = [*words[:3], tmp_path / "nothing.jsonl", *words[4:]]
    assert "nothing.jsonl does not exist" in failure(capsys, *missing)
    first = json.loads((reviewed / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    first["objects"] = {"point": [[5, 5]], "category": ["cat"], "score": [0.5]}
    (tmp_path / "points.jsonl").write_text(json.dumps(first) + "\n", encoding="utf-8")
    assert "holds points" in failure(capsys, *words[:3], tmp_path / "points.jsonl", *words[4:])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "tasks.json").write_text("[]")
    assert "is not from this command" in failure(capsys, *words[:-1], tmp_path / "taken")


def test_reviewing_loads_no_torch(reviewed):
    words = ["review", str(reviewed / "data"), "--predictions", str(reviewed / "predictions.jsonl")]
    code = (
        f"import sys; from data_prep.__main__ import main; main({words!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (reviewed / "data_review").iterdir()) == [
        "labels.xml", "review.html", "review.json", "tasks.json",
    ]  # fmt: skip
