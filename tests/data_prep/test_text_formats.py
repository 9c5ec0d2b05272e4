"""data_prep: text files with a row for each object, one for each image: KITTI, DOTA, VisDrone."""

from tests.helpers.sources import failure, kinds, make_image, prepared

TO_TEST = ("--split-ratio", "0,0,100")
KITTI_3D = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"


def write(root, name: str, rows: str, image: str, size=(100, 80)):
    make_image(root / image, *size)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(rows, encoding="utf-8")


# ---- KITTI -----------------------------------------------------------------------------------------------------------


def test_kitti(tmp_path, capsys):
    root = tmp_path / "in" / "training"
    rows = (
        f"Car 0.00 1 -1.59 10.5 20 30.25 40 {KITTI_3D}\n"
        f"DontCare -1 -1 -10 50 60 90 70 -1 -1 -1 -1000 -1000 -1000 -10\n"
        f"Cyclist 0.30 2 0.1 1 2 3 4 {KITTI_3D} 0.9\n"  # with a score
    )
    write(root, "label_2/000000.txt", rows, "image_2/000000.png")
    write(root, "label_2/000001.txt", "", "image_2/000001.png")
    write(root, "calib/000000.txt", "P0: 7.2e+02 0 6.1e+02 0\n", "image_2/000000.png")
    make_image(root / "image_2" / "000002.png")
    make_image(tmp_path / "in" / "testing" / "image_2" / "000000.png")
    records, problems, _ = prepared(capsys, "kitti", tmp_path / "in", *TO_TEST, "--out", tmp_path / "out")
    objects = records["training/image_2/000000"]["objects"]
    assert objects["bbox"] == [[10.5, 20, 30.25, 40], [50, 60, 90, 70], [50, 60, 90, 70], [1, 2, 3, 4]]
    assert objects["category"] == ["Car", "Car", "Cyclist", "Cyclist"]
    assert objects["ignore"] == [False, True, True, False]
    assert objects["truncated"] == [0.0, None, None, 0.3] and objects["occluded"] == [1, None, None, 2]
    assert records["training/image_2/000001"]["objects"]["bbox"] == [] and len(records) == 2
    assert kinds(problems) == [("training/image_2/000002", "no_annotation", "000002.png")]


def test_kitti_types_of_several_words_and_chosen_classes(tmp_path, capsys):
    """As CVAT exports them. A region that is not to be judged holds for the classes that are chosen."""
    rows = (
        f"traffic light 0 0 0 10 20 30 40 {KITTI_3D}\nCar 0 0 0 1 2 3 4 {KITTI_3D}\n"
        f"DontCare -1 -1 -10 50 60 900 70 {KITTI_3D}\n"
    )
    write(tmp_path / "in", "default/label_2/a.txt", rows, "default/image_2/a.png")
    (tmp_path / "in" / "labels.txt").write_text("traffic light\n")
    words = ("auto", tmp_path / "in", *TO_TEST, "--classes", "lamp", "--rename", "traffic light=lamp")
    records, problems, _ = prepared(capsys, *words, "--out", tmp_path / "out")
    (record,) = records.values()
    assert record["objects"]["category"] == ["lamp", "lamp"] and record["objects"]["ignore"] == [False, True]
    assert record["objects"]["bbox"] == [[10, 20, 30, 40], [50, 60, 100, 70]]
    assert sorted(kind for _, kind, _ in kinds(problems)) == ["clipped", "other_class"]


def test_regions_of_every_class_are_no_class(tmp_path, capsys):
    region = f"DontCare -1 -1 -10 50 60 90 70 {KITTI_3D}\n"
    write(tmp_path / "in", "a.txt", region, "a.png")
    words = ("kitti", tmp_path / "in", *TO_TEST, "--default-class", "thing")
    message = failure(capsys, *words, "--out", tmp_path / "out")
    assert "the source has neither objects nor class names" in message
    write(tmp_path / "in", "b.txt", f"Car 0 0 0 1 2 3 4 {KITTI_3D}\n", "b.png")
    records, *_ = prepared(capsys, *words, "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["Car"]


def test_a_class_that_is_only_ignored_has_no_objects(tmp_path, capsys):
    write(tmp_path / "in", "a.txt", "10,20,20,30,1,1,0,0\n50,40,20,20,0,0,0,0\n", "a.png")
    *_, printed = prepared(capsys, "visdrone", tmp_path / "in", *TO_TEST, "--out", tmp_path / "out")
    assert "no objects of class people, bicycle, car, van" in printed


def test_kitti_is_recognised_behind_many_other_files(tmp_path, capsys):
    """Folders are read in the order of their names: testing, and calib before label_2."""
    write(tmp_path / "in" / "training", "label_2/0.txt", f"Car 0 0 0 1 2 30 40 {KITTI_3D}\n", "image_2/0.png")
    for folder in ("testing", "training"):
        (tmp_path / "in" / folder / "calib").mkdir(parents=True)
        for number in range(1100):
            (tmp_path / "in" / folder / "calib" / f"{number}.txt").write_text("P0: 7.2e+02 0 6.1e+02 0\n")
    (tmp_path / "in" / "training" / "label_2" / "!.txt").write_text("notes\n")
    records, _, printed = prepared(capsys, "auto", tmp_path / "in", *TO_TEST, "--out", tmp_path / "out")
    assert list(records) == ["training/image_2/0"] and "1 .txt file(s) have neither rows nor an image" in printed
    (tmp_path / "in" / "training" / "label_2" / "0.txt").write_text("")
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "o")
    assert "It contains 2202 .txt, 1 .png" in message


def test_kitti_with_splits_in_every_folder(tmp_path, capsys):
    """calib/train has the files of label_2/train by name, but no labels."""
    for split in ("train", "val"):
        write(tmp_path / "in", f"label_2/{split}/0.txt", f"Car 0 0 0 1 2 30 40 {KITTI_3D}\n", f"image_2/{split}/0.png")
        write(tmp_path / "in", f"calib/{split}/0.txt", "P0: 7.2e+02 0 6.1e+02 0\n", f"image_2/{split}/0.png")
    records, problems, _ = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: (record["split"], record["objects"]["bbox"]) for name, record in records.items()} == {
        "image_2/train/0": ("train", [[1, 2, 30, 40]]),
        "image_2/val/0": ("validation", [[1, 2, 30, 40]]),
    }
    assert not problems


# ---- DOTA ------------------------------------------------------------------------------------------------------------


def test_dota(tmp_path, capsys):
    rows = (
        "imagesource:GoogleEarth\ngsd:0.146343590398\n"
        "20.0 10.0 40.0 30.5 30.0 40.0 10.0 20.0 small-vehicle 0\n"
        "50 50 60 50 60 70 50 70 plane 1\n1 2 3 2 3 4 1 4 ship 2\n5 6 9 6 9 8 5 8 ship\n"
    )
    write(tmp_path / "in", "train/labelTxt/P0000.txt", rows, "train/images/P0000.png")
    write(tmp_path / "in", "val/labelTxt/P0001.txt", "imagesource:GF-2\ngsd:null\n", "val/images/P0001.png")
    records, problems, printed = prepared(capsys, "dota", tmp_path / "in", "--out", tmp_path / "out")
    objects = records["train/images/P0000"]["objects"]
    assert objects["bbox"] == [[10, 10, 40, 40], [50, 50, 60, 70], [1, 2, 3, 4], [5, 6, 9, 8]]
    assert objects["category"] == ["small-vehicle", "plane", "ship", "ship"]
    assert objects["ignore"] == [False, True, True, False]
    assert printed.count("rotated boxes are replaced by the upright boxes around them") == 1 and not problems
    assert {name: record["split"] for name, record in records.items()} == {
        "train/images/P0000": "train",
        "val/images/P0001": "validation",
    }


def test_two_folders_of_labels_for_the_same_images(tmp_path, capsys):
    """DOTA comes with rotated and with upright boxes."""
    for folder in ("labelTxt", "hbb"):
        write(tmp_path / "in", f"{folder}/P0.txt", "1 2 30 2 30 40 1 40 plane 0\n", "images/P0.png")
    message = failure(capsys, "dota", tmp_path / "in", "--out", tmp_path / "out")
    assert "has two files for" in message and str(tmp_path / "in" / "hbb" / "P0.txt") in message
    words = ("dota", tmp_path / "in" / "hbb", "--images", tmp_path / "in" / "images", *TO_TEST)
    assert list(prepared(capsys, *words, "--out", tmp_path / "out")[0]) == ["P0"]


def test_yolov5_obb_is_dota_and_yolo_obb_is_yolo(tmp_path, capsys):
    for name, row in (("dota", "10 20 30 20 30 40 10 40 helmet 0"), ("yolo", "0 0.1 0.25 0.3 0.25 0.3 0.5 0.1 0.5")):
        root = tmp_path / name
        write(root, "train/labels/a.txt" if name == "yolo" else "train/labelTxt/a.txt", row, "train/images/a.png")
        (root / "data.yaml").write_text("train: train/images\nnc: 1\nnames: ['helmet']\n")
        records, _, printed = prepared(capsys, "auto", root, *TO_TEST, "--out", tmp_path / f"{name}-out")
        assert f"is read as {name}: " in printed
        assert records["train/images/a"]["objects"]["bbox"] == [[10, 20, 30, 40]]
        assert records["train/images/a"]["objects"]["category"] == ["helmet"]


# ---- VisDrone --------------------------------------------------------------------------------------------------------


def test_visdrone(tmp_path, capsys):
    root = tmp_path / "in" / "VisDrone2019-DET-train"
    rows = "10,20,20,30,1,4,0,1\n1,2,5,6,0,10,1,2\n50,40,20,20,0,0,0,0,\n60,60,10,10,0,11,0,0\n"
    write(root, "annotations/0000002_00005_d_0000014.txt", rows, "images/0000002_00005_d_0000014.jpg")
    write(tmp_path / "in" / "VisDrone2019-DET-val", "annotations/b.txt", "10,20,20,30,1,4,0,1\n", "images/b.jpg")
    records, problems, _ = prepared(
        capsys, "visdrone", tmp_path / "in", "--classes", "car,motor", "--out", tmp_path / "out"
    )
    record = records["VisDrone2019-DET-train/images/0000002_00005_d_0000014"]
    assert record["split"] == "train" and not problems
    assert record["objects"]["bbox"] == [
        [10, 20, 30, 50],
        [1, 2, 6, 8],
        [50, 40, 70, 60],
        [50, 40, 70, 60],
        [60, 60, 70, 70],
        [60, 60, 70, 70],
    ]
    assert record["objects"]["category"] == ["car", "motor", "car", "motor", "car", "motor"]
    assert record["objects"]["ignore"] == [False, True, True, True, True, True]
    assert record["objects"]["occlusion"][:2] == [1, 2]
