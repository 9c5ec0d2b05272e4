"""--descriptions: what classes mean, in the questions alone; and nothing changes without it."""

import hashlib
import json

import pytest
from PIL import Image

from boxtune.data.dataset import read_info, read_records
from boxtune.data.questions import asked_classes, first_question
from data_prep.__main__ import main

FILES = ("train.jsonl", "validation.jsonl", "test.jsonl", "dataset.json", "problems.jsonl")


@pytest.fixture
def source(tmp_path):
    """Twelve images with a cell each, and a box beyond the border."""
    folder = tmp_path / "source"
    folder.mkdir()
    items = []
    for i in range(12):
        Image.new("RGB", (100, 80), (i, 0, 0)).save(folder / f"{i}.png")
        box = [0.1, 0.1, 0.5, 1.2 if i == 3 else 0.6]
        items.append({"image": f"{i}.png", "objects": [{"class": ("RBC", "WBC")[i % 2], "bbox_aabb": box}]})
    (folder / "list.json").write_text(json.dumps(items))
    return folder / "list.json"


def converted(source, *words: str):
    out = source.parent.parent / "data"
    main(["aabb", str(source), "--out", str(out), "--copy-images", "--overwrite", *words])
    return out


def refused(capsys, source, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        converted(source, *words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_questions_hold_the_descriptions_and_everything_else_the_names(source):
    plain = {name: (converted(source) / name).read_text() for name in FILES}
    out = converted(source, "--descriptions", "RBC=red blood cell, without nucleus")
    asked = "Detect every RBC (red blood cell, without nucleus) and WBC in the image."
    for split in ("train", "validation", "test"):
        assert {first_question(record) for record in read_records(out, split)} == {f"<image>{asked}"}
    described = {name: (out / name).read_text() for name in FILES}
    without = {name: text.replace(asked, "Detect every RBC and WBC in the image.") for name, text in described.items()}
    assert json.loads(without.pop("dataset.json")) == json.loads(plain.pop("dataset.json")) | {
        "descriptions": {"RBC": "red blood cell, without nucleus"}
    }
    assert without == plain


def test_a_question_about_one_class_names_its_description_and_its_answer_the_class(source):
    out = converted(
        source, "--questions", "most-common", "--descriptions", "WBC=white = pale", "--descriptions", "RBC=red"
    )
    records = read_records(out, "train")
    assert {first_question(record) for record in records} == {
        "<image>Detect every RBC (red) in the image.",
        "<image>Detect every WBC (white = pale) in the image.",
    }
    assert {name for record in records for name in asked_classes(record, [])} == {"RBC", "WBC"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.yaml", "RBC: red blood cell\nWBC: weißes Blutkörperchen\n"),
        ("d.json", '{"RBC": "red blood cell", "WBC": "weißes Blutkörperchen"}'),
    ],
)
def test_a_file_holds_the_descriptions(source, name, text):
    path = source.parent / name
    path.write_text(text, encoding="utf-8")
    out = converted(source, "--descriptions", str(path))
    assert read_info(out)["descriptions"] == {"RBC": "red blood cell", "WBC": "weißes Blutkörperchen"}


def test_descriptions_belong_to_the_new_names(source, capsys):
    out = converted(source, "--rename", "RBC=erythrocyte", "--descriptions", "erythrocyte=red")
    assert read_info(out)["descriptions"] == {"erythrocyte": "red"}
    error = refused(capsys, source, "--rename", "RBC=erythrocyte", "--descriptions", "RBC=red")
    assert "--descriptions: unknown class 'RBC'; known: WBC, erythrocyte" in error


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cell=round", "--descriptions: unknown class 'cell'; known: RBC, WBC"),
        ("RBC=a\nb", "holds '\\n', part of a special token or a control character"),
        ("RBC=see <image>", "holds '<image>', part of a special token"),
        ("RBC", "write NAME=TEXT, or name a .yaml or .json file"),
        ("RBC=", "write NAME=TEXT"),
        ("none.yaml", "--descriptions none.yaml: there is no such file."),
    ],
)
def test_unusable_descriptions_are_refused_and_nothing_is_written(source, capsys, given, message):
    assert message in refused(capsys, source, "--descriptions", given)
    assert not (source.parent.parent / "data").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[RBC]", "expected NAME: TEXT for each class, got ['RBC']"),
        ("RBC: {a: b}", "must be texts; quote these:"),
        ("no: red", "must be texts; quote these:"),
        ("RBC: [", "is corrupt: "),
        ("RBC: ' red'", "must be a text without space around it"),
    ],
)
def test_a_file_with_other_content_is_refused(source, capsys, text, message):
    path = source.parent / "d.yaml"
    path.write_text(text)
    assert message in refused(capsys, source, "--descriptions", str(path))


def test_descriptions_of_a_dataset_are_checked_when_it_is_read(source, capsys):
    out = converted(source, "--descriptions", "RBC=red")
    info = json.loads((out / "dataset.json").read_text())
    for described, message in (
        ({"cell": "x"}, "descriptions: unknown class 'cell'; known: RBC, WBC"),
        ({"RBC": 3}, "descriptions: RBC: 3 must be a text"),
        ([], "descriptions: [] must be an object"),
    ):
        (out / "dataset.json").write_text(json.dumps(info | {"descriptions": described}))
        with pytest.raises(SystemExit) as stop:
            main(["recipe", str(out), "--model", "Qwen/Qwen3-VL-4B-Instruct", "--out", str(out.parent / "r.yaml")])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_without_descriptions_every_byte_is_that_of_earlier_versions(source):
    """The digest was computed before datasets had descriptions."""
    out = converted(source, "--questions", "mixed")
    digest = hashlib.sha256(b"".join((out / name).read_bytes() for name in FILES)).hexdigest()
    assert digest == "152369f3bc25604fffa866a117973a5abdf017d7e8a08cc6b61800a56ad58cde"
