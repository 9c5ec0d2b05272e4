"""data_prep: folder layouts of common tools, in which images, labels and splits are found, or reported as missing."""

import json

import pytest

from tests.helpers.sources import coco, failure, kinds, make_image, prepared, voc, voc_xml, yolo

CAT = [("cat", 0, [1, 2, 30, 40])]


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def splits_of(records: dict[str, dict]) -> dict[str, str]:
    return {name: record["split"] for name, record in records.items()}


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def test_yolo_labels_mirror_the_folders_of_images_elsewhere(tmp_path, capsys):
    write(tmp_path / "ann" / "classes.txt", "cat\n")
    for name in ("a", "more/b"):
        make_image(tmp_path / "pics" / f"{name}.jpg")
        write(tmp_path / "ann" / f"{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    arguments = ("yolo", tmp_path / "ann", "--images", tmp_path / "pics", "--out")
    records, problems, _ = prepared(capsys, *arguments, tmp_path / "out")
    assert {name: len(record["objects"]["bbox"]) for name, record in records.items()} == {"a": 1, "more/b": 1}
    assert problems == []

    write(tmp_path / "ann" / "more" / "gone.txt", "0 0.5 0.5 0.2 0.2\n")
    message = failure(capsys, *arguments, tmp_path / "o")
    assert str(tmp_path / "pics" / "more" / "gone") in message and "missing" in message


def test_yolo_labels_are_found_by_the_last_images_of_a_path(tmp_path, capsys):
    root = tmp_path / "images" / "set"
    write(root / "labels" / "train" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "labels" / "set" / "images" / "train" / "a.txt", "")  # by the first: a file of another dataset
    make_image(root / "images" / "train" / "a.png")
    write(root / "data.yaml", "names: [cat]\ntrain: images/train\n")
    records, *_ = prepared(capsys, "yolo", root, "--out", tmp_path / "out")
    assert [len(record["objects"]["bbox"]) for record in records.values()] == [1]


def test_yolo_reports_a_label_file_of_two_images(tmp_path, capsys):
    write(tmp_path / "ann" / "classes.txt", "cat\n")
    write(tmp_path / "ann" / "0.txt", "0 0.5 0.5 0.2 0.2\n")
    for camera in ("cam1", "cam2"):
        make_image(tmp_path / "pics" / camera / "0.jpg")
    message = failure(capsys, "yolo", tmp_path / "ann", "--images", tmp_path / "pics", "--out", tmp_path / "out")
    assert "0.txt would be the label file of both" in message


def test_yolo_warns_of_a_split_without_label_files(tmp_path, capsys):
    files = {"train/images/a.png": "0 0.5 0.5 0.2 0.2\n", "val_images/b.png": None}
    root = yolo(tmp_path / "in", "names: [cat]\ntrain: train/images\nval: val_images\n", files)
    write(root / "val_labels" / "b.txt", "0 0.5 0.5 0.2 0.2\n")
    *_, printed = prepared(capsys, "yolo", root, "--out", tmp_path / "out")
    assert "none of the 1 images of the validation split has a label file, so all count as empty" in printed

    for name in ("data.yaml", "val_labels/b.txt"):
        (root / name).unlink()
    write(root / "classes.txt", "cat\n")
    *_, printed = prepared(capsys, "yolo", root, "--out", tmp_path / "by_folders")
    assert "none of the 1 images of the validation split has a label file, so all count as empty" in printed


def test_yolo_paths_of_another_machine(tmp_path, capsys):
    yaml = "path: /content/drive/set\nnames: [cat]\ntrain: /content/drive/set/images/train\nval: /content/drive/set/val.txt\n"
    files = {"images/train/a.png": "0 0.5 0.5 0.2 0.2\n", "images/val/b.png": "0 0.5 0.5 0.2 0.2\n"}
    root = yolo(tmp_path / "in", yaml, files)
    write(root / "val.txt", "/content/drive/set/images/val/b.png\n")
    records, *_ = prepared(capsys, "yolo", root, "--out", tmp_path / "out")
    assert splits_of(records) == {"images/train/a": "train", "images/val/b": "validation"}


def test_yolo_as_cvat_exports_it(tmp_path, capsys):
    """Its lists have `data/` before the names of files next to them."""
    files = {"images/train/a.png": "0 0.5 0.5 0.2 0.2\n", "images/train/b.png": "0 0.5 0.5 0.2 0.2\n"}
    root = yolo(tmp_path / "in", "path: .\nnames: {0: cat}\ntrain: train.txt\n", files)
    write(root / "train.txt", "data/images/train/a.png\ndata/images/train/b.png\n")
    records, *_ = prepared(capsys, "yolo", root, "--out", tmp_path / "out")
    assert {name: len(record["objects"]["bbox"]) for name, record in records.items()} == {
        "images/train/a": 1,
        "images/train/b": 1,
    }

    (root / "images").rename(tmp_path / "pics")
    message = failure(capsys, "yolo", root, "--out", tmp_path / "o")
    assert "data.yaml: none of its 2 images exists. Name their folder with --images" in message
    assert "label file" not in message, "the labels are all there"
    records, *_ = prepared(capsys, "yolo", root, "--images", tmp_path / "pics", "--out", tmp_path / "elsewhere")
    assert {name: len(record["objects"]["bbox"]) for name, record in records.items()} == {"train/a": 1, "train/b": 1}


def test_yolo_rejects_lists_with_two_names_for_one_image(tmp_path, capsys):
    root = yolo(tmp_path / "in", "names: [cat]\ntrain: train.txt\n", {"images/0.png": "0 0.5 0.5 0.2 0.2\n"})
    write(root / "train.txt", "images/0.png\n./images/0.png\n")
    assert len(prepared(capsys, "yolo", root, "--out", tmp_path / "out")[0]) == 1
    write(root / "train.txt", "/cam1/images/0.png\n/cam2/images/0.png\n")
    message = failure(capsys, "yolo", root, "--out", tmp_path / "o")
    assert "/cam1/images/0.png and /cam2/images/0.png both match" in message
    # Also in two lists: the image would be used for both training and evaluation.
    write(root / "data.yaml", "names: [cat]\ntrain: train.txt\nval: val.txt\n")
    write(root / "train.txt", "/cam1/images/0.png\n")
    write(root / "val.txt", "/cam2/images/0.png\n")
    assert "/cam1/images/0.png and /cam2/images/0.png both match" in failure(
        capsys, "yolo", root, "--out", tmp_path / "o"
    )
    # Two spellings of the same full path are allowed.
    write(root / "train.txt", f"{root}/images/0.png\n")
    write(root / "val.txt", "images/0.png\n")
    *_, printed = prepared(capsys, "yolo", root, "--out", tmp_path / "both")
    assert "image(s) are in more than one split" in printed


def test_yolo_does_not_replace_a_missing_image_of_a_list(tmp_path, capsys):
    files = {"images/a.png": "0 0.5 0.5 0.2 0.2\n", "images/b.png": "0 0.5 0.5 0.2 0.2\n"}
    root = yolo(tmp_path / "in", "names: [cat]\ntrain: train.txt\n", files)
    write(root / "train.txt", "images\\b.png\nother_camera/images/a.png\n")
    message = failure(capsys, "yolo", root, "--out", tmp_path / "out")
    assert f"other_camera/images/a: missing: {root / 'other_camera' / 'images' / 'a.png'}" in message
    assert "images/b" not in message, "a path of Windows"
    # If there is a folder called data, it is not a prefix.
    write(root / "train.txt", "data/images/a.png\nimages/b.png\n")
    make_image(root / "data" / "images" / "a.png")
    write(root / "data" / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    records, *_ = prepared(capsys, "yolo", root, "--out", tmp_path / "out")
    assert sorted(records) == ["data/images/a", "images/b"]


def test_yolo_reads_a_dataset_in_a_folder_called_runs(tmp_path, capsys):
    files = {f"runs/{split}/images/{split}.png": "0 0.5 0.5 0.2 0.2\n" for split in ("train", "val")}
    records, *_ = prepared(capsys, "yolo", yolo(tmp_path / "in", "names: [cat]\n", files), "--out", tmp_path / "out")
    assert len(records) == 2
    write(tmp_path / "in" / "runs" / "train" / "exp2" / "labels" / "x.txt", "0 0.4 0.4 0.2 0.2 0.93\n")
    make_image(tmp_path / "in" / "runs" / "train" / "exp2" / "batch.png")
    *_, printed = prepared(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out", "--overwrite")
    assert "1 image(s) are output of a detector" in printed


def test_yolo_leaves_out_the_output_of_detectors(tmp_path, capsys):
    write(tmp_path / "in" / "classes.txt", "cat\n")
    make_image(tmp_path / "in" / "images" / "a.png")
    write(tmp_path / "in" / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    run = tmp_path / "in" / "runs" / "detect" / "predict"
    drawn = make_image(run / "a.png")
    for name in ("a", "seen_elsewhere"):
        write(run / "labels" / f"{name}.txt", "0 0.4 0.4 0.2 0.2 0.93\n")
    records, problems, printed = prepared(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert list(records) == ["images/a"] and problems == []
    assert f"1 image(s) are output of a detector and are left out, such as {drawn}" in printed
    assert f"2 label file(s) are output of a detector and are left out, such as {run / 'labels' / 'a.txt'}" in printed


# ---- VOC -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["xml", "XML"])
def test_voc_splits_may_be_folders_of_the_annotations(tmp_path, capsys, suffix):
    for split, name in (("train", "a"), ("val", "b")):
        make_image(tmp_path / "in" / "images" / split / f"{name}.jpg")
        write(tmp_path / "in" / "annotations" / split / f"{name}.{suffix}", voc_xml(f"{name}.jpg", (100, 80), CAT))
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert splits_of(records) == {"train/a": "train", "val/b": "validation"}


def test_voc_datasets_named_after_splits_become_one(tmp_path, capsys):
    for split in ("train", "test"):
        make_image(tmp_path / "in" / split / "images" / "a.jpg")
        write(tmp_path / "in" / split / "annotations" / "a.xml", voc_xml("a.jpg", (100, 80), CAT))
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert splits_of(records) == {"train/annotations/a": "train", "test/annotations/a": "test"}
    assert records["test/annotations/a"]["image"] == str(tmp_path / "in" / "test" / "images" / "a.jpg")


def test_images_elsewhere_have_the_subfolders_of_their_annotations(tmp_path, capsys):
    for camera in ("cam1", "cam2"):
        make_image(tmp_path / "pics" / camera / "0.jpg")
        write(tmp_path / "in" / "Annotations" / camera / "0.xml", voc_xml("0.jpg", (100, 80), CAT))
        shapes = [{"label": "cat", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}]
        write(tmp_path / "labelme" / camera / "0.json", json.dumps({"shapes": shapes, "imagePath": "0.jpg"}))
    for kind in ("voc", "labelme"):
        source = tmp_path / ("in" if kind == "voc" else "labelme")
        out = tmp_path / f"out_{kind}"
        records, *_ = prepared(capsys, kind, source, "--images", tmp_path / "pics", "--out", out)
        assert records["cam2/0"]["image"] == str(tmp_path / "pics" / "cam2" / "0.jpg")


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_coco_objects_without_bbox_get_the_box_of_their_polygons(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[None], [[]], [[1, 2, 3, 4]]])
    data = json.loads((folder / "annotations.json").read_text())
    data["annotations"][0] |= {"segmentation": [[10, 20, 30, 25, 15, 60], [40, 20, 41, 20, 41, 22]]}
    data["annotations"][1] |= {"segmentation": {"counts": "abc", "size": [80, 100]}}
    (folder / "annotations.json").write_text(json.dumps(data))
    records, problems, printed = prepared(capsys, "coco", folder, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == [[10, 20, 41, 60]]
    assert kinds(problems) == [("p1", "bad_box", [])]
    assert "1 image(s), such as p1, count as empty because none of their objects is usable" in printed


@pytest.mark.parametrize("subset", ["default", "Train", "Validation"])
def test_coco_as_cvat_exports_it(tmp_path, capsys, subset):
    coco(tmp_path / "made", [[[1, 2, 30, 40]]])
    annotations = (tmp_path / "made" / "annotations.json").read_text()
    write(tmp_path / "in" / "annotations" / f"instances_{subset}.json", annotations)
    place = make_image(tmp_path / "in" / "images" / subset / "p0.png")
    records, *_ = prepared(capsys, "coco", tmp_path / "in", "--out", tmp_path / "out")
    assert [record["image"] for record in records.values()] == [str(place)]


def test_images_option_finds_names_without_their_folders(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[[1, 2, 30, 40]]])
    data = json.loads((folder / "annotations.json").read_text())
    data["images"][0]["file_name"] = "upload/1/p0.png"
    (folder / "annotations.json").write_text(json.dumps(data))
    place = make_image(tmp_path / "pics" / "p0.png")
    message = failure(capsys, "coco", folder / "annotations.json", "--out", tmp_path / "o")
    assert "missing" in message, "without --images, the folders in names count"
    arguments = ("--images", tmp_path / "pics", "--out", tmp_path / "out")
    records, *_ = prepared(capsys, "coco", folder / "annotations.json", *arguments)
    assert [record["image"] for record in records.values()] == [str(place)]


def test_coco_images_may_be_named_by_coco_url(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[[1, 2, 30, 40]]])
    data = json.loads((folder / "annotations.json").read_text())
    del data["images"][0]["file_name"]
    data["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000001.jpg"
    (folder / "annotations.json").write_text(json.dumps(data))
    place = make_image(folder / "train2017" / "000000001.jpg")
    records, *_ = prepared(capsys, "coco", folder, "--out", tmp_path / "out")
    assert {name: record["image"] for name, record in records.items()} == {"train2017/000000001": str(place)}


def test_coco_annotations_of_a_rejected_image_are_not_further_errors(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[[1, 2, 30, 40]], [[1, 2, 30, 40], [5, 6, 7, 8]]])
    data = json.loads((folder / "annotations.json").read_text())
    del data["images"][1]["file_name"]
    (folder / "annotations.json").write_text(json.dumps(data))
    message = failure(capsys, "coco", folder, "--out", tmp_path / "out")
    assert "images[1] needs id and file_name" in message and "1 problem(s)" in message


def test_coco_does_not_report_a_class_as_left_out_if_another_id_has_its_name(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[[1, 2, 30, 40]]], name="_annotations.coco.json")
    data = json.loads((folder / "_annotations.coco.json").read_text())
    data["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 7, "name": "cat", "supercategory": "cat"},
    ]
    (folder / "_annotations.coco.json").write_text(json.dumps(data))
    records, _, printed = prepared(capsys, "coco", folder, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["category"] == ["cat"] and "left out" not in printed


# ---- labelme, tables --------------------------------------------------------------------------------------------------


def test_labelme_splits_may_be_folders_at_any_depth(tmp_path, capsys):
    for split in ("train", "val"):
        make_image(tmp_path / "in" / "data" / split / "a.jpg")
        shapes = [{"label": "cat", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}]
        write(tmp_path / "in" / "data" / split / "a.json", json.dumps({"shapes": shapes, "imagePath": "a.jpg"}))
    records, *_ = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert splits_of(records) == {"data/train/a": "train", "data/val/a": "validation"}


def test_labelme_shapes_of_a_group_are_one_object(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    shapes = [
        {"label": label, "points": points, "shape_type": "polygon", "group_id": group}
        for label, group, points in (
            ("cat", 1, [[1, 2], [10, 2], [10, 9]]),
            ("dog", 1, [[1, 2], [10, 2], [10, 9]]),
            ("cat", 1, [[30, 1], [40, 1], [40, 50]]),
            ("cat", None, [[1, 2], [10, 2], [10, 9]]),
            ("cat", None, [[1, 3], [10, 3], [10, 9]]),
        )
    ]
    write(tmp_path / "in" / "a.json", json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    records, *_ = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    objects = records["a"]["objects"]
    assert objects["category"] == ["cat", "dog", "cat", "cat"]
    assert objects["bbox"] == [[1, 1, 40, 50], [1, 2, 10, 9], [1, 2, 10, 9], [1, 3, 10, 9]]


def test_jsonl_columns_that_are_not_parallel_are_left_out(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    objects = {"bbox": [[1, 2, 30, 40]] * 3, "category": ["a", "b", "c"], "count": 3, "area": [1, 2, 3], "mask": []}
    write(tmp_path / "in" / "metadata.jsonl", json.dumps({"file_name": "a.png", "objects": objects}) + "\n")
    arguments = ("--bbox-format", "xyxy", "--out", tmp_path / "out")
    records, _, printed = prepared(capsys, "jsonl", tmp_path / "in", *arguments)
    assert records["a"]["objects"].keys() == {"bbox", "category", "ignore", "area"}
    for name in ("count", "mask"):
        assert f"objects.{name} does not hold a value for each box and is left out" in printed


def test_csv_prefers_class_names_to_class_numbers(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "rows.csv", "image_id,class,class_name,xmin,ymin,xmax,ymax\na.png,0,cat,1,2,30,40\n")
    records, *_ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["cat"]


@pytest.mark.parametrize("option", ["SOURCE", "--out", "--images"])
def test_an_empty_path_is_rejected(tmp_path, capsys, option):
    voc(tmp_path / "in", ["a"])
    words = {"SOURCE": tmp_path / "in", "--out": tmp_path / "out", "--images": tmp_path / "in"} | {option: ""}
    source = words.pop("SOURCE")
    with pytest.raises(SystemExit) as stop:
        prepared(capsys, "voc", source, *[word for pair in words.items() for word in pair])
    assert stop.value.code == 2
    assert "the path is empty" in capsys.readouterr().err
