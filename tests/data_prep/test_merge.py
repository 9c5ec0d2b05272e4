"""data_prep merge: what joined datasets hold, what they warn of, and what cannot be joined."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from boxtune.data.dataset import read_info, write_dataset
from tests.helpers.records import make_record
from tests.helpers.sources import failure, make_image, prepared


@pytest.fixture
def dataset(tmp_path):
    """A function that writes a prepared dataset: {split: {id: [(box, class), …]}}."""

    def write(name, splits, classes, columns=None, copied=False, problems=(), **kwargs):
        records = {}
        for split, images in splits.items():
            records[split] = []
            for number, objects in images.items():
                path = make_image(tmp_path / "images" / name / f"{number}.png")
                record = make_record(number, str(path), 100, 80, objects, classes=classes)
                for key, value in (columns or {}).items():
                    record["objects"][key] = [value] * len(objects)
                records[split].append(record)
        staged = None
        if copied:
            staged = tmp_path / "staged"
            shutil.copytree(tmp_path / "images" / name, staged)
            for record in itertools.chain(*records.values()):
                record["image"] = f"images/{Path(record['image']).name}"
        write_dataset(
            tmp_path / name,
            name=name,
            source_format="test",
            classes=classes,
            splits=records,
            problems=problems,
            staged_images=staged,
            **kwargs,
        )
        return tmp_path / name

    return write


CAT, DOG = ([10, 10, 50, 50], "cat"), ([20, 20, 60, 70], "dog")


def test_images_classes_columns_and_problems_are_joined(dataset, tmp_path, capsys):
    problem = {"id": "a1", "kind": "bad_box", "value": [], "action": "object dropped"}
    a = dataset("a", {"train": {"a1": [DOG], "a2": []}, "test": {"a3": [CAT]}}, ["dog", "cat"], problems=[problem])
    b = dataset("b", {"train": {"b1": [CAT]}}, ["owl", "cat"], {"source": "pseudo", "score": 0.7})
    records, problems, printed = prepared(capsys, "merge", a, b, "--out", tmp_path / "ab")
    assert {name: record["split"] for name, record in records.items()} == {
        "a1": "train", "a2": "train", "b1": "train", "a3": "test",
    }  # fmt: skip
    assert read_info(tmp_path / "ab")["classes"] == ["dog", "cat", "owl"]
    assert read_info(tmp_path / "ab")["splits"]["train"] == {"images": 3, "objects": 2, "empty": 1}
    assert records["a1"]["objects"] == {
        "bbox": [[20, 20, 60, 70]], "category": ["dog"], "ignore": [False], "source": [None], "score": [None],
    }  # fmt: skip
    assert records["b1"]["objects"]["source"] == ["pseudo"]
    assert records["b1"]["objects"]["score"] == [0.7]
    assert records["a2"]["objects"]["score"] == []
    assert problems == [problem]
    assert "written to" in printed


def test_questions_ask_for_the_classes_of_their_own_dataset_unless_all_are_asked_for(dataset, tmp_path, capsys):
    a = dataset("a", {"train": {"a1": [DOG]}}, ["dog", "cat"])
    b = dataset("b", {"train": {"b1": [CAT]}}, ["cat", "owl"])
    records, _, printed = prepared(capsys, "merge", a, b, "--out", tmp_path / "ab")
    assert records["a1"]["messages"][0]["content"] == "<image>Detect every dog and cat in the image."
    assert records["b1"]["messages"][0]["content"] == "<image>Detect every cat and owl in the image."
    assert f"warning: {a} has no class owl" in printed
    assert f"warning: {b} has no class dog" in printed
    records, _, printed = prepared(capsys, "merge", a, b, "--out", tmp_path / "all", "--ask-all")
    for record in records.values():
        assert record["messages"][0]["content"] == "<image>Detect every dog, cat and owl in the image."
    assert "has no class" not in printed


def test_colliding_ids_are_an_error_that_lists_twenty_and_names_the_remedy(dataset, tmp_path, capsys):
    images = {f"image-{number:02}": [CAT] for number in range(25)}
    a, b = dataset("a", {"train": images}, ["cat"]), dataset("b", {"test": images}, ["cat"])
    message = failure(capsys, "merge", a, b, "--out", tmp_path / "ab")
    assert "25 image id(s) are in more than one dataset" in message
    assert "--replace" in message
    assert message.count("  - image-") == 20
    assert "and 5 more" in message


def test_a_replaced_image_keeps_its_place_split_and_question(dataset, tmp_path, capsys):
    old = [{"id": name, "kind": "bad_box", "value": "old", "action": "object dropped"} for name in ("one", "two")]
    a = dataset("a", {"train": {"one": [CAT]}, "test": {"two": [CAT], "three": []}}, ["cat", "dog"], problems=old)
    b = dataset("b", {"train": {"two": [CAT, DOG]}}, ["dog", "cat"])
    records, problems, _ = prepared(capsys, "merge", a, b, "--out", tmp_path / "ab", "--replace")
    assert list(records) == ["one", "two", "three"]
    assert records["two"]["split"] == "test"
    assert records["two"]["objects"]["category"] == ["cat", "dog"]
    assert records["two"]["image"] == str(tmp_path / "images" / "b" / "two.png")
    assert records["two"]["messages"][0]["content"] == "<image>Detect every cat and dog in the image."
    assert [line["id"] for line in problems] == ["one"]


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_found_wherever_the_datasets_keep_them(dataset, tmp_path, capsys, copy):
    a = dataset("a", {"train": {"a1": [CAT]}}, ["cat"], copied=True)
    b = dataset("b", {"train": {"b1": [CAT]}}, ["cat"])
    out = tmp_path / "deep" / "er" / "ab"
    records, _, _ = prepared(capsys, "merge", a, b, "--out", out, *(["--copy-images"] if copy else []))
    paths = {name: out / record["image"] for name, record in records.items()}
    assert paths["a1"].read_bytes() == (tmp_path / "images" / "a" / "a1.png").read_bytes()
    assert paths["b1"].read_bytes() == (tmp_path / "images" / "b" / "b1.png").read_bytes()
    assert all(path.is_relative_to(out) == copy for path in paths.values())


def test_identical_images_give_warnings(dataset, tmp_path, capsys):
    a = dataset("a", {"train": {"a1": [CAT], "a2": [CAT]}}, ["cat"])
    b = dataset("b", {"train": {"b1": [CAT]}, "test": {"b2": [CAT]}}, ["cat"])
    for copy, original in (("b/b1.png", "a/a1.png"), ("b/b2.png", "a/a2.png")):
        shutil.copyfile(tmp_path / "images" / original, tmp_path / "images" / copy)
    _, _, printed = prepared(capsys, "merge", a, b, "--out", tmp_path / "ab")
    assert "warning: 1 image(s) are in more than one split: a2 (train) = b2 (test)" in printed
    assert "warning: 1 image(s) are in a split under two ids, with the objects of each: b1 = a1 (train)" in printed


def test_what_cannot_be_joined(dataset, tmp_path, capsys):
    a = dataset("a", {"train": {"a1": [CAT]}}, ["cat"], descriptions={"cat": "a pet"})
    b = dataset("b", {"train": {"b1": [CAT]}}, ["cat"], descriptions={"cat": "a big cat"})
    c = dataset("c", {"train": {"c1": [CAT]}}, ["cat"])
    message = failure(capsys, "merge", a, b, "--out", tmp_path / "ab")
    assert f"cat: 'a pet', but 'a big cat' in {b}" in message
    assert "at least two different datasets" in failure(capsys, "merge", a, "--out", tmp_path / "ab")
    assert "at least two different datasets" in failure(capsys, "merge", a, a, "--out", tmp_path / "ab")
    assert "exists. Use --overwrite" in failure(capsys, "merge", a, c, "--out", b)
    assert "which would be replaced" in failure(capsys, "merge", a, c, "--out", a, "--overwrite")
    (tmp_path / "images" / "c" / "c1.png").unlink()
    assert "c1: missing: " in failure(capsys, "merge", a, c, "--out", tmp_path / "ac")


def test_descriptions_of_all_datasets_are_kept(dataset, tmp_path, capsys):
    a = dataset("a", {"train": {"a1": [CAT]}}, ["cat"], descriptions={"cat": "a pet"})
    b = dataset("b", {"train": {"b1": [DOG]}}, ["dog"], descriptions={"dog": "a friend"})
    records, _, _ = prepared(capsys, "merge", a, b, "--out", tmp_path / "ab", "--ask-all")
    assert json.loads((tmp_path / "ab" / "dataset.json").read_text())["descriptions"] == {
        "cat": "a pet",
        "dog": "a friend",
    }
    assert records["a1"]["messages"][0]["content"] == "<image>Detect every cat (a pet) and dog (a friend) in the image."
