"""data_prep: classes, questions and splits."""

import json
from pathlib import Path

import numpy as np
import pytest

from boxtune.data.dataset import read_info
from data_prep.pipeline.questions import ask
from data_prep.pipeline.splits import choose_entries, divide
from data_prep.reading.source import Entry
from data_prep.reading.split_names import split_of
from tests.helpers.sources import failure, kinds, make_image, prepared, voc, voc_xml


def pets(folder: Path) -> Path:
    """Thirty images: a cat in every second one, a dog in every third."""
    entries = []
    for i in range(30):
        make_image(folder / f"{i:02d}.png")
        names = ["cat"] * (i % 2 == 0) + ["dog"] * (i % 3 == 0)
        entries.append(
            {"image": f"{i:02d}.png", "objects": [{"class": n, "bbox_aabb": [0, 0, 0.5, 0.5]} for n in names]}
        )
    entries[0]["objects"].append({"class": "Hund", "bbox_aabb": [0.5, 0.5, 1, 1]})
    (folder / "list.json").write_text(json.dumps(entries))
    return folder


def test_classes_filter_and_order_after_renaming(tmp_path, capsys):
    source = pets(tmp_path / "in")
    args = ["aabb", source, "--out", tmp_path / "out", "--rename", "Hund=dog,cat=Katze", "--classes", "dog"]
    records, problems, _ = prepared(capsys, *args)
    assert records["00"]["objects"]["category"] == ["dog", "dog"] and read_info(tmp_path / "out")["classes"] == ["dog"]
    assert len(records) == 30 and records["01"]["objects"]["bbox"] == []
    assert [entry["value"] for entry in problems if entry["kind"] == "other_class"] == ["Katze"] * 15 and len(
        problems
    ) == 15
    assert records["01"]["messages"][0]["content"] == "<image>Detect every dog in the image."
    message = failure(capsys, "aabb", source, "--out", tmp_path / "o", "--classes", "dog,cow", "--rename", "cta=x")
    assert (
        "--classes: unknown class 'cow'; known: Hund, cat, dog" in message
        and "--rename: unknown class 'cta'" in message
    )


def test_mixed_questions_ask_for_present_and_absent_classes_in_training_only(tmp_path, capsys):
    args = ("aabb", pets(tmp_path / "in"), "--rename", "Hund=dog")
    records, *_ = prepared(capsys, *args, "--out", tmp_path / "out", "--questions", "mixed")
    seen = {"all": 0, "present": 0, "absent": 0}
    for record in records.values():
        question, answer = [turn["content"] for turn in record["messages"]]
        if answer == "<boxes>":
            assert question == "<image>Detect every cat and dog in the image."
            seen["all"] += record["split"] == "train"
            continue
        name = answer.removeprefix("<boxes:").removesuffix(">")
        assert record["split"] == "train" and question == f"<image>Detect every {name} in the image."
        seen["present" if name in record["objects"]["category"] else "absent"] += 1
    assert all(seen.values()) and seen["all"] > seen["present"]
    plain, *_ = prepared(capsys, *args, "--out", tmp_path / "plain")
    assert {record["messages"][1]["content"] for record in plain.values()} == {"<boxes>"}


def test_a_class_whose_objects_are_all_ignored_is_neither_present_nor_absent():
    objects = {"bbox": [[0, 0, 1, 1]] * 2, "category": ["crowd", "cat"], "ignore": [True, False]}
    answers = {ask(f"x{i}", objects, ["crowd", "cat", "dog"], "mixed")[1]["content"] for i in range(200)}
    assert answers == {"<boxes>", "<boxes:cat>", "<boxes:dog>"}


def test_the_most_common_class_is_asked_for_in_every_split(tmp_path, capsys):
    """Ignored objects do not count. The first class wins a tie. An image without objects asks for all classes."""
    many = ["dog", "dog", "cat"], ["cat", "dog"], [], ["cat", "dog", "dog", "dog"]
    entries = []
    for i in range(40):
        make_image(tmp_path / f"{i:02}.png")
        objects = [{"class": name, "bbox_aabb": [0, 0, 0.5, 0.5]} for name in many[i % 4]]
        for thing in objects[1:] if i % 4 == 3 else []:
            thing["ignore"] = True
        entries.append({"image": f"{i:02}.png", "objects": objects})
    (tmp_path / "l.json").write_text(json.dumps(entries))
    args = ("aabb", tmp_path / "l.json", "--classes", "cat,dog", "--questions", "most-common")
    records, *_ = prepared(capsys, *args, "--out", tmp_path / "out")
    assert {record["split"] for record in records.values()} == {"train", "validation", "test"}
    for record in records.values():
        wanted = ("dog", "cat", None, "cat")[int(record["id"]) % 4]
        question, answer = [turn["content"] for turn in record["messages"]]
        assert answer == (f"<boxes:{wanted}>" if wanted else "<boxes>")
        assert question == f"<image>Detect every {wanted or 'cat and dog'} in the image."


def test_class_names_that_cannot_be_in_an_answer_are_errors(tmp_path, capsys):
    entries = []
    for i, name in enumerate(["ok", "<|box_start|>", "", " padded "]):
        make_image(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "objects": [{"class": name, "bbox_aabb": [0, 0, 0.5, 0.5]}]})
    (tmp_path / "l.json").write_text(json.dumps(entries))
    message = failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert "'<|box_start|>' holds" in message and "(first in 1)" in message
    assert "is empty" not in message, "objects without a class are dropped and listed"
    assert "padded" not in message
    (tmp_path / "l.json").write_text(json.dumps([{"image": "0.png", "objects": []}]))
    assert "nothing to ask for" in failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")


def test_an_undivided_source_is_divided_by_the_ids_alone():
    ids = [f"image_{i}" for i in range(2000)]
    divided, warnings = divide(dict.fromkeys(ids), None)
    counts = [list(divided.values()).count(split) for split in ("train", "validation", "test")]
    assert np.allclose(np.array(counts) / 2000, [0.8, 0.1, 0.1], atol=0.03) and not warnings
    fewer, _ = divide(dict.fromkeys(reversed(ids[:1000])), None)
    assert all(divided[name] == split for name, split in fewer.items())
    halves, _ = divide(dict.fromkeys(ids), [50, 50, 0])
    assert set(halves.values()) == {"train", "validation"} and 900 < list(halves.values()).count("train") < 1100


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 20])
def test_small_sets_have_every_split_as_far_as_images_go(count):
    divided, warnings = divide({f"x{i}": None for i in range(count)}, None)
    assert len(set(divided.values())) == min(count, 3) and len(warnings) == max(0, 3 - count)
    assert list(divided.values()).count("train") >= max(1, count // 2 - 1)


@pytest.mark.parametrize(
    ("splits", "kept"),
    [
        (["trainval", "train"], [None, "train"]),
        (["trainval", "validation"], [None, "validation"]),  # trainval holds the images of validation
        (["trainval", "test"], ["train", "test"]),
    ],
)
def test_trainval_is_left_out_where_one_of_its_parts_exists(splits, kept):
    entries = [Entry(i, f"{i}.png", f"{i}.png", split) for i, split in enumerate(splits)]
    chosen = choose_entries(entries, by_folders=True)
    assert {entry.number: entry.split for entry in chosen.entries} == {i: s for i, s in enumerate(kept) if s}
    assert [entry["id"] for entry in chosen.problems] == [str(i) for i, split in enumerate(kept) if not split]


def test_the_sources_own_division_is_kept_unless_a_ratio_is_given():
    own = {f"x{i}": "train" if i % 2 else "validation" for i in range(100)}
    assert divide(own, None) == (own, [])
    again, warnings = divide(own, [80, 10, 10])
    assert set(again.values()) == {"train", "validation", "test"} and "overrides" in warnings[0]
    only, warnings = divide(dict.fromkeys(own, "validation"), None)
    assert set(only.values()) == {"train", "validation", "test"} and "only a validation split" in warnings[0]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train_labels", "train"),
        ("instances_val2017", "validation"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("trainval", "trainval"),
        ("test-00000-of-00001", "test"),
        ("train_val", None),
        ("minival", None),
        ("contest", None),
    ],
)
def test_split_names(name, split):
    assert split_of(name) == split


def in_folders(folder: Path, kind: str, names: list[str]) -> Path:
    """A source of any format with folders in its image names."""
    for name in names:
        make_image(folder / f"{name}.png")
        if kind == "voc":
            (folder / f"{name}.xml").write_text(voc_xml("", (100, 80), [("cat", 0, [1, 2, 30, 40])]))
        elif kind == "labelme":
            shapes = [{"label": "cat", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}]
            (folder / f"{name}.json").write_text(json.dumps({"shapes": shapes}))
        elif kind == "yolo":
            (folder / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2")
    if kind == "yolo":
        (folder / "classes.txt").write_text("cat")
    elif kind == "csv":
        rows = "".join(f"{name}.png,1,2,30,40,cat\n" for name in names)
        (folder / "labels.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class\n{rows}")
    elif kind == "jsonl":
        objects = {"bbox": [[60, 50, 95, 75]], "category": ["cat"]}
        rows = [json.dumps({"file_name": f"{name}.png", "objects": objects}) for name in names]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    elif kind == "coco":
        images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(names)]
        things = [{"image_id": i, "category_id": 1, "bbox": [1, 2, 30, 40]} for i in range(len(names))]
        data = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "cat"}]}
        (folder / "boxes.json").write_text(json.dumps(data))
    elif kind == "via":
        shape = {"name": "rect", "x": 1, "y": 2, "width": 30, "height": 40}
        regions = [{"shape_attributes": shape, "region_attributes": {"kind": "cat"}}]
        entries = {name: {"filename": f"{name}.png", "regions": regions} for name in names}
        (folder / "via.json").write_text(json.dumps(entries))
    return folder


KINDS = ("voc", "labelme", "yolo", "csv", "jsonl", "coco", "via")


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_name_several_splits_divide(tmp_path, capsys, kind):
    names = [f"{split}/{i}" for split in ("train", "val", "test") for i in range(3)]
    source = in_folders(tmp_path / "in", kind, [*names, "spare/9"])
    records, problems, printed = prepared(capsys, kind, source, "--out", tmp_path / "out")
    wanted = {"train": "train", "val": "validation", "test": "test"}
    assert {name: record["split"] for name, record in records.items()} == {
        name: wanted[name.split("/")[0]] for name in names
    }
    assert kinds(problems) == [("spare/9", "no_split", None)]
    assert "splits were taken from the names of the image folders (3 train, 3 validation, 3 test)" in printed
    # --split-ratio divides all images.
    records, *_ = prepared(capsys, kind, source, "--split-ratio", "50,50,0", "--out", tmp_path / "again")
    assert sorted(records) == sorted([*names, "spare/9"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_folder_with_the_name_of_a_split_among_others_divides_nothing(tmp_path, capsys, kind):
    names = [f"{vehicle}/{i}" for vehicle in ("bus", "car", "train") for i in range(4)]
    records, problems, printed = prepared(
        capsys, kind, in_folders(tmp_path / "in", kind, names), "--out", tmp_path / "out"
    )
    assert sorted(records) == sorted(names) and problems == []
    assert {record["split"] for record in records.values()} == {"train", "validation", "test"}
    assert (
        "folder names suggest the train split for 4 image(s), such as train/0, and no split for the other 8" in printed
    )


def test_a_split_column_outweighs_the_folders(tmp_path, capsys):
    rows = []
    for folder, split in (("train", "test"), ("val", "train"), ("test", "")):
        make_image(tmp_path / "in" / folder / "0.png")
        rows.append(f"{folder}/0.png,1,2,30,40,cat,{split}\n")
    (tmp_path / "in" / "a.csv").write_text("filename,xmin,ymin,xmax,ymax,class,split\n" + "".join(rows))
    records, problems, printed = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {"train/0": "test", "val/0": "train"}
    assert (
        kinds(problems) == [("test/0", "no_split", None)]
        and "folder names" not in printed
        and "image folders" not in printed
    )


def test_voc_data_sets_of_splits_may_have_lists_or_none(tmp_path, capsys):
    voc(tmp_path / "in" / "train", ["a", "b"], {"train": ["a"], "val": ["b"]})
    voc(tmp_path / "in" / "test", ["c"])
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    splits = {name.split("/")[-1]: record["split"] for name, record in records.items()}
    assert splits == {"a": "train", "b": "validation", "c": "test"}


def test_voc_lists_trainval_only_where_its_parts_are_missing(tmp_path, capsys):
    ids = [f"i{n}" for n in range(6)]
    lists = {
        "train": ids[:2],
        "val": ids[2:4],
        "trainval": ids[:5],
        "test": [*ids[5:], "gone"],
        "cat_train": ["i0 1", "i2 -1"],
    }
    records, problems, printed = prepared(capsys, "voc", voc(tmp_path / "full", ids, lists), "--out", tmp_path / "o1")
    assert [records[name]["split"] for name in ids if name in records] == ["train"] * 2 + ["validation"] * 2 + ["test"]
    assert (
        kinds(problems) == [("gone", "no_annotation", "test.txt"), ("i4", "no_split", None)] and "left out" in printed
    )
    lists = {"trainval": ids[:4], "test": ids[4:]}
    records, _, printed = prepared(capsys, "voc", voc(tmp_path / "part", ids, lists), "--out", tmp_path / "o2")
    assert [records[name]["split"] for name in ids] == ["train"] * 4 + ["test"] * 2 and "no validation split" in printed


def test_the_split_that_will_be_scored_is_named_where_there_is_no_test_split(tmp_path, capsys):
    source = voc(tmp_path / "in", ["a", "b", "c"], {"train": ["a", "b"], "val": ["c"]})
    *_, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out")
    assert "no test split, so evaluation will use validation (1 image(s))" in printed
    assert "the validation split has 1 image(s), and scores on fewer than 30 are unreliable" in printed
    assert "--split-ratio 50,10,40" in printed
    words = ("--split-ratio", "50,10,40", "--out", tmp_path / "again")
    *_, printed = prepared(capsys, "voc", source, *words)
    assert "the test split has 1 image(s)" in printed and "no test split" not in printed
    assert "--split-ratio 50,10,40" not in printed, "which the user has just given"


def test_voc_lists_may_hold_spaces_endings_marks_and_a_byte_order_mark(tmp_path, capsys):
    lists = {"train": ["\ufeffmy cat", "b 1"], "val": ["c.jpg", "d.e"]}
    source = voc(tmp_path / "in", ["my cat", "b", "c", "d.e"], lists)
    records, problems, _ = prepared(capsys, "voc", source, "--out", tmp_path / "out")
    splits = {name: record["split"] for name, record in records.items()}
    assert splits == {"my cat": "train", "b": "train", "c": "validation", "d.e": "validation"} and not problems


def test_a_word_in_a_split_column_that_names_no_split_gives_a_warning(tmp_path, capsys):
    rows = [
        f"{word},{make_image(tmp_path / 'in' / f'{word}.png').name},1,2,30,40,cat\n" for word in ("train", "val", "old")
    ]
    (tmp_path / "in" / "a.csv").write_text("split,filename,xmin,ymin,xmax,ymax,class\n" + "".join(rows))
    records, problems, printed = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert sorted(records) == ["train", "val"] and kinds(problems) == [("old", "no_split", None)]
    assert "unknown splits: old. Known are train, validation and test" in printed


def test_a_named_but_absent_split_gives_a_warning(tmp_path, capsys):
    lists = {"train": ["a", "b"], "test": ["x", "y"]}
    source = voc(tmp_path / "in", ["a", "b", "c"], lists)
    records, _, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out")
    assert "test.txt defines the test split, but none" in printed and sorted(records) == ["a", "b"]


def test_the_same_image_in_two_splits_gives_a_warning(tmp_path, capsys):
    source = voc(tmp_path / "in", ["a", "b", "c"], {"train": ["a", "b"], "val": ["c"]})
    (source / "JPEGImages" / "c.jpg").write_bytes((source / "JPEGImages" / "a.jpg").read_bytes())
    *_, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out")
    assert "1 image(s) are in more than one split: a (train) = c (validation)" in printed
    (source / "JPEGImages" / "c.jpg").write_bytes((source / "JPEGImages" / "b.jpg").read_bytes() + b"\0")
    *_, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out", "--overwrite")
    assert "more than one split" not in printed
