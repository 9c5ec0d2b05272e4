"""data_prep pseudo-label: which boxes of a checkpoint become objects, and what is left out."""

import json
import shutil
import subprocess
import sys

import pytest

from boxtune.data.dataset import read_info
from tests.helpers.records import ROOT
from tests.helpers.sources import failure, make_image, prepared

LEFT, RIGHT = [10, 12, 40, 44.5], [60, 10, 90, 41]
SPLITS = ("train.jsonl", "validation.jsonl", "test.jsonl")


def line(name, objects, problems=()):
    """A line of predictions.jsonl with these (box, class, score)."""
    columns = {key: [entry[number] for entry in objects] for number, key in enumerate(("bbox", "category", "score"))}
    return {
        "id": name, "image": name, "width": 100, "height": 80, "codec": None, "input_size": None,
        "text": "", "objects": columns, "problems": list(problems), "seconds": None,
    }  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """A folder of images and predictions of every kind for them."""
    lines = [
        line("a.png", [(LEFT, "dog", 0.9), (RIGHT, "cat", 0.6)]),
        line("b.png", [(LEFT, "cat", 0.7), (RIGHT, "cat", 0.59)], ["fence"]),
        line("sub/low.png", [(LEFT, "cat", 0.2), (RIGHT, "dog", 0.3)]),
        line("sub/nothing.png", []),
        line("sub/own.png", [], ["low_score"]),
        line("sub/truncated.png", [(LEFT, "cat", 0.99)], ["truncated"]),
    ]
    for entry in lines:
        make_image(tmp_path / "photos" / entry["id"])
    write(tmp_path / "predictions.jsonl", lines)
    return tmp_path


def write(path, lines):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines), encoding="utf-8")


def words(folder, *more):
    return [
        "pseudo-label",
        "--predictions",
        folder / "predictions.jsonl",
        "--images",
        folder / "photos",
        "--out",
        folder / "out",
        *more,
    ]


def test_boxes_become_objects_with_source_and_score(photos, capsys):
    records, problems, printed = prepared(capsys, *words(photos))
    assert {name: record["split"] for name, record in records.items()} == {
        "a": "train",
        "b": "train",
        "sub/nothing": "train",
    }
    assert records["a"]["objects"] == {
        "bbox": [LEFT, RIGHT], "category": ["dog", "cat"], "ignore": [False, False],
        "source": ["pseudo", "pseudo"], "score": [0.9, 0.6],
    }  # fmt: skip
    assert records["b"]["objects"]["score"] == [0.7]
    assert records["sub/nothing"]["objects"]["source"] == []
    assert records["a"]["image"] == str(photos / "photos" / "a.png")
    assert records["a"]["messages"][0]["content"] == "<image>Detect every cat and dog in the image."
    info = read_info(photos / "out")
    assert (info["format"], info["classes"]) == ("pseudo-label", ["cat", "dog"])
    assert info["problems"] == {"incomplete": 1, "low_score": 4}
    assert [(entry["id"], entry["kind"], entry["action"]) for entry in problems] == [
        ("b", "low_score", "object dropped"),
        ("sub/low", "low_score", "image left out"),
        ("sub/low", "low_score", "image left out"),
        ("sub/own", "low_score", "image left out"),
        ("sub/truncated", "incomplete", "image left out"),
    ]
    assert problems[0]["value"] == {"bbox": RIGHT, "category": "cat", "score": 0.59}
    assert "boxes: 3 with a score of at least 0.6, 4 dropped below it" in printed
    assert "images without a box, which are kept: 1" in printed
    assert "images left out: 2 with low scores only, 1 with an incomplete response" in printed


def test_classes_and_least_score(photos, capsys):
    records, problems, _ = prepared(capsys, *words(photos, "--classes", "dog", "--min-score", 0.25, "--copy-images"))
    assert [*records] == ["a", "b", "sub/low", "sub/nothing"]
    assert records["sub/low"]["objects"]["category"] == ["dog"]
    assert records["b"]["objects"]["bbox"] == []
    assert {entry["id"] for entry in problems if entry["kind"] == "other_class"} == {"a", "b"}
    assert (photos / "out" / records["a"]["image"]).is_file() and not records["a"]["image"].startswith("/")
    assert records["a"]["messages"][0]["content"] == "<image>Detect every dog in the image."


def test_corrupt_images_stop_the_command_or_are_listed(photos, capsys):
    (photos / "photos" / "corrupt.png").write_bytes(b"no image")
    assert "corrupt.png: not an image" in failure(capsys, *words(photos))
    records, problems, _ = prepared(capsys, *words(photos, "--skip-bad-images"))
    assert "corrupt" not in records
    assert [entry["id"] for entry in problems if entry["kind"] == "bad_image"] == ["corrupt"]


def test_an_existing_dataset_is_replaced_only_with_overwrite(photos, capsys):
    prepared(capsys, *words(photos))
    assert "exists. Use --overwrite" in failure(capsys, *words(photos))
    prepared(capsys, *words(photos, "--overwrite", "--min-score", 0.8))
    assert read_info(photos / "out")["splits"]["train"]["objects"] == 1


def test_errors(photos, capsys):
    message = failure(capsys, *words(photos, "--min-score", 0.995))
    assert "No box in" in message and "at least 0.995; the highest is 0.90" in message
    message = failure(capsys, *words(photos, "--min-score", 60, "--server", "http://localhost:1"))
    assert "--min-score 60.0 must be from 0 to 1" in message and "--server has no effect" in message
    make_image(photos / "photos" / "new.png")
    assert "new.png: no prediction" in failure(capsys, *words(photos))
    (photos / "photos" / "new.png").unlink()
    write(photos / "predictions.jsonl", [line("a.png", []) | {"objects": {"point": [], "category": [], "score": []}}])
    for path in (photos / "photos").rglob("*.png"):
        if path.name != "a.png":
            path.unlink()
    assert "holds points" in failure(capsys, *words(photos))


def test_pseudo_labels_join_a_labeled_dataset(photos, tmp_path, capsys):
    """The columns of pseudo-labels are null for objects that a person labeled."""
    make_image(tmp_path / "labeled" / "own.png")
    (tmp_path / "labeled" / "labels.csv").write_text("image,x1,y1,x2,y2,class\nown.png,1,2,30,40,cat\n")
    prepared(
        capsys, "csv", tmp_path / "labeled" / "labels.csv", "--out", tmp_path / "human", "--split-ratio", "100,0,0"
    )
    prepared(capsys, *words(photos))
    records, _, _ = prepared(
        capsys, "merge", tmp_path / "human", photos / "out", "--out", tmp_path / "both", "--ask-all"
    )
    assert records["own"]["objects"]["source"] == [None]
    assert records["a"]["objects"]["source"] == ["pseudo", "pseudo"]
    assert {record["messages"][0]["content"] for record in records.values()} == {
        "<image>Detect every cat and dog in the image."
    }


def test_reading_predictions_loads_no_torch(photos):
    code = (
        f"import sys; from data_prep.__main__ import main; main({[*map(str, words(photos))]!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_checkpoint_labels_images(tmp_path, capsys):
    """The embedded model finds what it finds; the objects are its predictions, and the file of these gives the same dataset."""
    from tests.helpers.http_api import embedded_detector, shapes

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(ROOT / "assets" / "tiny_qwen3_vl", checkpoint)
    embedded_detector().checkpoint.grounding.save(checkpoint)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(shapes(3)):
        image.save(tmp_path / "photos" / f"{number}.png")
    common = ["--images", tmp_path / "photos", "--min-score", 0]
    prepared(capsys, "pseudo-label", "--ckpt", checkpoint, *common, "--out", tmp_path / "out")
    file = tmp_path / "out_predictions" / "predictions.jsonl"
    found = {entry["id"]: entry for entry in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    assert [*found] == ["0.png", "1.png", "2.png"]
    written = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    for record in map(json.loads, written.splitlines()):
        assert record["objects"]["score"] == found[f"{record['id']}.png"]["objects"]["score"]
    assert read_info(tmp_path / "out")["classes"] == ["circle", "square", "star"]
    classes = ["--classes", "circle,square,star"]
    prepared(capsys, "pseudo-label", "--predictions", file, *common, *classes, "--out", tmp_path / "again")
    assert (tmp_path / "again" / "train.jsonl").read_text(encoding="utf-8") == written
