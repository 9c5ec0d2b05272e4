"""data_prep: the formats with folders of images and annotations: VOC, COCO, YOLO."""

import json

import pytest

from boxtune.data.dataset import read_info
from tests.helpers.sources import coco, failure, kinds, make_image, prepared, voc, voc_xml, yolo


def test_voc_boxes_are_taken_as_written_and_difficult_ones_are_ignored(tmp_path, capsys):
    root = voc(tmp_path / "VOCdevkit" / "VOC2007", ["a"])
    objects = [("cat", 0, [1, 2, 100, 80]), ("dog", 1, ["3.5", 4, 50, 60]), ("dog", 0, ["?", 4, 50, 60])]
    (root / "Annotations" / "a.xml").write_text(voc_xml("a.jpg", (0, 0), objects))
    records, problems, _ = prepared(capsys, "voc", tmp_path / "VOCdevkit", "--out", tmp_path / "out")
    assert records["a"]["objects"] == {
        "bbox": [[1, 2, 100, 80], [3.5, 4, 50, 60]],
        "category": ["cat", "dog"],
        "ignore": [False, True],
    }
    assert kinds(problems) == [("a", "bad_box", ["?", 4, 50, 60])]
    voc(tmp_path / "VOCdevkit" / "VOC2012", ["b"])
    assert "several VOC datasets" in failure(capsys, "voc", tmp_path / "VOCdevkit", "--out", tmp_path / "o")


def test_coco_captions_become_a_column(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 2, 30, 40]], []], caption="old, rusty")
    records, *_ = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    assert [record["objects"]["caption"] for record in records.values()] == [["old, rusty"], []]


@pytest.mark.parametrize("filename", ["a", "a.png", "A.JPG", "", "other.jpg", "C:\\photos\\a.jpg"])
def test_voc_images_are_found_by_the_stem(tmp_path, capsys, filename):
    root = voc(tmp_path / "in", ["a", "other"])
    (root / "Annotations" / "a.xml").write_text(voc_xml(filename, (100, 80), [("cat", 0, [1, 2, 30, 40])]))
    records, *_ = prepared(capsys, "voc", root, "--out", tmp_path / "out")
    assert records["a"]["image"] == str(root / "JPEGImages" / "a.jpg")


def test_voc_lists_images_without_xml(tmp_path, capsys):
    root = voc(tmp_path / "in", ["a", "b"])
    (root / "Annotations" / "b.xml").unlink()
    records, problems, printed = prepared(capsys, "voc", root, "--out", tmp_path / "out")
    assert list(records) == ["a"] and "1 image(s) without a split or an annotation are left out, such as" in printed
    assert problems == [{"id": "JPEGImages/b", "kind": "no_annotation", "value": "b.jpg", "action": "image left out"}]


def test_voc_xml_beside_images_in_split_folders(tmp_path, capsys):
    for split in ("train", "valid"):
        make_image(tmp_path / "in" / split / "a.jpg")
        (tmp_path / "in" / split / "a.xml").write_text(voc_xml("a.jpg", (100, 80), [("cat", 0, [1, 2, 30, 40])]))
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {"train/a": "train", "valid/a": "validation"}


def test_voc_faults_are_collected(tmp_path, capsys):
    root = voc(tmp_path / "in", ["a", "b", "c"])
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    (root / "Annotations" / "b.xml").write_text("<html/>")
    (root / "JPEGImages" / "c.jpg").unlink()
    message = failure(capsys, "voc", root, "--out", tmp_path / "out")
    assert (
        "a.xml: not XML: no element found: line 1" in message
        and "the root element is <html>" in message
        and "c: missing" in message
    )


def test_coco_splits_by_file_with_an_image_folder_each(tmp_path, capsys):
    root = tmp_path / "in"
    for split, box in (("train2017", [1, 2, 3, 4]), ("val2017", [5, 6, 7, 8])):
        make_image(root / "images" / split / "0001.jpg")
        make_image(root / "0001.jpg")  # of neither split
        data = {
            "images": [{"id": 9, "file_name": "0001.jpg", "width": 100, "height": 80}],
            "annotations": [{"image_id": 9, "category_id": 90, "bbox": box, "iscrowd": int(split == "val2017")}],
            "categories": [{"id": 90, "name": "cup"}, {"id": 3, "name": "car"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
        (root / "annotations" / f"captions_{split}.json").write_text("{}")
    records, _, printed = prepared(capsys, "coco", root, "--out", tmp_path / "out")
    assert records["train/0001"]["image"] == str(root / "images" / "train2017" / "0001.jpg")
    assert records["validation/0001"]["objects"] == {"bbox": [[5, 6, 12, 14]], "category": ["cup"], "ignore": [True]}
    assert records["validation/0001"]["image"] == str(root / "images" / "val2017" / "0001.jpg")
    assert read_info(tmp_path / "out")["classes"] == ["cup", "car"] and "no objects of class car" in printed


def test_coco_areas_are_kept_because_they_decide_ap_by_size(tmp_path, capsys):
    """`area` is that of the mask. What is no area is kept under another name; an annotation may have none."""
    source = coco(tmp_path / "in", [[[1, 2, 40, 50]] * 5, [[-5, 0, 20, 20]], []])
    path = source / "annotations.json"
    content = json.loads(path.read_text())
    areas = [900.5, 0, None, "big", -3, 111]
    for annotation, area in zip(content["annotations"], areas, strict=True):
        annotation["area"] = area
    del content["annotations"][2]["area"]
    path.write_text(json.dumps(content))
    records, *_ = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["area"] == [900.5, 0, None, None, None]
    assert records["p0"]["objects"]["source_area"] == [None, None, None, "big", -3]
    assert records["p1"]["objects"]["area"] == [111], "a clipped box keeps the area of its mask"
    assert records["p2"]["objects"]["area"] == []


def test_coco_in_roboflow_folders_leaves_out_the_grouping_class(tmp_path, capsys):
    for split in ("train", "valid", "test"):
        coco(tmp_path / "in" / split, [[[1, 1, 20, 20]]], name="_annotations.coco.json")
        file = tmp_path / "in" / split / "_annotations.coco.json"
        data = json.loads(file.read_text())
        data["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 7, "name": "cell", "supercategory": "cells"},
        ]
        file.write_text(json.dumps(data))
    records, _, printed = prepared(capsys, "coco", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {
        "train/p0": "train",
        "valid/p0": "validation",
        "test/p0": "test",
    }
    assert read_info(tmp_path / "out")["classes"] == ["cell"] and "only groups the others" in printed


def test_coco_keeps_an_unused_class_whose_supercategory_has_its_name(tmp_path, capsys):
    """COCO's own file has the category person with the supercategory person."""
    file = coco(tmp_path / "in", [[[1, 1, 20, 20]]]) / "annotations.json"
    data = json.loads(file.read_text())
    data["categories"] = [
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 7, "name": "cell", "supercategory": "person"},
    ]
    file.write_text(json.dumps(data))
    *_, printed = prepared(capsys, "coco", tmp_path / "in", "--out", tmp_path / "out")
    assert read_info(tmp_path / "out")["classes"] == ["person", "cell"] and "only groups the others" not in printed


def test_coco_images_may_be_elsewhere_and_in_folders(tmp_path, capsys):
    make_image(tmp_path / "store" / "x" / "1.png")
    data = {
        "images": [{"id": "s", "file_name": "x/1.png"}],
        "annotations": [{"image_id": "s", "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "one.json").write_text("\ufeff" + json.dumps(data), encoding="utf-8")
    records, *_ = prepared(
        capsys, "coco", tmp_path / "one.json", "--images", tmp_path / "store", "--out", tmp_path / "out"
    )
    assert list(records) == ["x/1"] and records["x/1"]["image"] == str(tmp_path / "store" / "x" / "1.png")
    message = failure(capsys, "coco", tmp_path / "one.json", "--images", tmp_path / "none", "--out", tmp_path / "o")
    assert "is not a folder" in message


def test_coco_faults_are_collected(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 2, 2]]])
    data = json.loads((source / "annotations.json").read_text())
    data["images"] += [{"id": 0, "file_name": "p0.png"}, {"id": 5}]
    data["annotations"] += [{"image_id": 99, "category_id": 7}, {"image_id": 0, "category_id": 1}, {"image_id": [0]}, 3]
    data["categories"] += [{"id": 8}]
    (source / "annotations.json").write_text(json.dumps(data))
    message = failure(capsys, "coco", source, "--out", tmp_path / "out")
    for part in (
        "images[1]: duplicate id 0",
        "images[2] needs",
        "annotations[1]: image_id 99",
        "annotations[2]: category_id 1",
    ):
        assert part in message
    assert "annotations[3] needs" in message and "annotations[4] needs" in message and "categories[1] needs" in message
    assert "7 problem(s)" in message


def test_yolo_rows_of_every_kind(tmp_path, capsys):
    rows = "0 0.5 0.5 0.2 0.5\n1 0.5 0.5 0.2 0.5 0.93\n\n0 0.1 0.1 0.3 0.1 0.2 0.4\n1 0.5 0.5\n0 0.5 0.5 nan 0.1\n"
    files = {"images/a.jpg": rows, "images/b.jpg": None, "images/c.jpg": ""}
    source = yolo(tmp_path / "in", "names: {1: dog, 0: cat}\ntrain: images\n", files)
    (source / "labels" / "classes.txt").write_text("cat\ndog\n")
    words = ("--split-ratio", "100,0,0", "--out", tmp_path / "out")
    records, problems, _ = prepared(capsys, "yolo", source, *words)
    assert records["images/a"]["objects"]["bbox"] == [[40, 20, 60, 60], [40, 20, 60, 60], [10, 8, 30, 32]]
    assert records["images/a"]["objects"]["category"] == ["cat", "dog", "cat"]
    assert records["images/b"]["objects"]["bbox"] == records["images/c"]["objects"]["bbox"] == []
    assert [entry["value"] for entry in problems] == [[0.5, 0.5], [0.5, 0.5, "nan", 0.1]]
    assert read_info(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_yolo_names_are_read_as_text(tmp_path, capsys):
    yaml = "\ufeffnames: [no, 1.0, 2024-13-45, 'null', 0x10]\nnc: 5\ntrain: images\nval: null\ntest:  # none\n"
    source = yolo(tmp_path / "in", yaml, {"images/a.jpg": "0 0.5 0.5 0.2 0.5\n4 0.5 0.5 0.2 0.5"})
    records, _, printed = prepared(capsys, "yolo", source, "--out", tmp_path / "out")
    assert read_info(tmp_path / "out")["classes"] == ["no", "1.0", "2024-13-45", "null", "0x10"]
    assert records["images/a"]["objects"]["category"] == ["no", "0x10"] and "which does not exist" not in printed


def test_yolo_paths_of_roboflow_and_ultralytics(tmp_path, capsys):
    box = "0 0.5 0.5 0.2 0.5"
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\n"
    files = {"train/images/a.jpg": box, "valid/images/b.jpg": box}
    records, _, printed = prepared(capsys, "yolo", yolo(tmp_path / "r", yaml, files), "--out", tmp_path / "o1")
    assert {name: record["split"] for name, record in records.items()} == {
        "train/images/a": "train",
        "valid/images/b": "validation",
    }
    assert "names test: ../test/images, which does not exist" in printed
    yaml = "path: data\ntrain: [images/one, images/two]\nval: val.txt\ntest:\nnames: [cat]\n"
    files = {f"data/images/{name}.jpg": box for name in ("one/a", "two/b", "three/c")}
    source = yolo(tmp_path / "u", yaml, files)
    (source / "data" / "val.txt").write_text("./images/three/c.jpg\n")
    records, *_ = prepared(capsys, "yolo", source / "data.yaml", "--out", tmp_path / "o2")
    assert {name: record["split"] for name, record in records.items()} == {
        "data/images/one/a": "train",
        "data/images/two/b": "train",
        "data/images/three/c": "validation",
    }
    assert all(len(record["objects"]["bbox"]) == 1 for record in records.values())


def test_yolo_warns_that_other_splits_are_used_if_the_train_folder_is_missing(tmp_path, capsys):
    yaml = "train: ../trian/images\nval: ../valid/images\nnames: ['cat']\n"
    source = yolo(tmp_path / "in", yaml, {f"valid/images/{name}.jpg": "0 0.5 0.5 0.2 0.5" for name in "abc"})
    _, _, printed = prepared(capsys, "yolo", source, "--out", tmp_path / "out", "--split-ratio", "34,33,33")
    assert (
        "names train: ../trian/images, which does not exist, so images of the other splits will be used for training"
        in printed
    )
    assert f"correct the path; there is no {tmp_path / 'trian' / 'images'}" in printed


def test_yolo_folders_without_yaml_and_labels_beside_the_images(tmp_path, capsys):
    for split in ("train", "val"):
        make_image(tmp_path / "in" / split / "a.jpg")
        (tmp_path / "in" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.5")
    assert "contains no class names" in failure(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    (tmp_path / "in" / "classes.txt").write_text("cat\n")
    records, *_ = prepared(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert {record["split"] for record in records.values()} == {"train", "validation"}
    assert records["val/a"]["objects"]["bbox"] == [[40, 20, 60, 60]]


def test_yolo_faults(tmp_path, capsys):
    files = {"images/a.jpg": "2 0.5 0.5 0.2 0.5\nx 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.2 0.2"}
    source = yolo(tmp_path / "in", "train: images\nnames: [cat, dog]\n", files)
    (source / "labels" / "gone.txt").write_text("0 0.5 0.5 0.2 0.5")
    message = failure(capsys, "yolo", source, "--out", tmp_path / "out")
    assert "a.txt:1: class 2, but the classes are numbered from 0 to 1" in message and "a.txt:2: class 'x'" in message
    assert "images/gone: missing" in message
    (source / "data.yaml").write_text("names: [cat\n")
    assert "not YAML" in failure(capsys, "yolo", source, "--out", tmp_path / "out")
    (source / "data.yaml").write_text("train: images\n")
    assert "needs `names`" in failure(capsys, "yolo", source, "--out", tmp_path / "out")
    (source / "data.yaml").write_text("train: elsewhere\nnames: [cat]\n")
    assert "found no image" in failure(capsys, "yolo", source, "--out", tmp_path / "out")
