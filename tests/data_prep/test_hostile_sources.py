"""data_prep: whatever the source contains, an error ends with one message and exit code 2, and leaves nothing behind."""

import gzip
import json
import os
import resource
import subprocess
import sys

import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.formats import FORMATS
from tests.helpers.records import ROOT
from tests.helpers.sources import coco, failure, make_image, prepared, voc, voc_xml, yolo


def run(*args, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "data_prep", *(str(arg) for arg in args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **kwargs)


# ---- files that cannot be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"images": [', "line 1 column"), ("[1, 2]", "needs an object with the lists"), ("[" * 100000, "not JSON")],
)
def test_the_command_exits_with_2_and_no_traceback_on_corrupt_json(tmp_path, text, expected):
    (tmp_path / "a.json").write_text(text)
    done = run("coco", tmp_path / "a.json", "--out", tmp_path / "new" / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(tmp_path / "a.json") in done.stderr and expected in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ('<?xml version="1.0" encoding="no-such-code"?>', "unknown encoding"),
        ('<?xml version="1.0" encoding="gbk"?>', "multi-byte encodings"),
        ('<!DOCTYPE a [<!ENTITY b "&c;"><!ENTITY c SYSTEM "file:///etc/passwd">]><annotation>&b;', "not XML"),
    ],
)
def test_xml_with_encodings_and_entities_that_the_parser_does_not_support(tmp_path, capsys, head, expected):
    root = voc(tmp_path / "in", ["a", "b"])
    (root / "Annotations" / "a.xml").write_text(head + voc_xml("a.jpg", (100, 80), []))
    (root / "JPEGImages" / "b.jpg").unlink()
    message = failure(capsys, "voc", root, "--out", tmp_path / "out")
    assert "a.xml: not XML" in message and expected in message and "b: missing" in message


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("[" * 1000, "not YAML"),
        ("names: []\ntrain: images\n", "no class name"),
        ("names: {}\ntrain: images\n", "no class name"),
        ("names: [[cat], dog]\ntrain: images\n", "check the entry 0"),
        ("names: {a: cat}\ntrain: images\n", "check the entry 'a'"),
        ("names: [cat]\ntrain: {a: images}\n", "train must be a path"),
        ("names: [cat]\ntrain: [images, [images]]\n", "train must be a path"),
        (f"names: [cat]\ntrain: {'a' * 300}\n", "correct the path"),
    ],
)
def test_invalid_yaml(tmp_path, capsys, yaml, expected):
    source = yolo(tmp_path / "in", yaml, {"images/a.jpg": "0 0.5 0.5 0.2 0.5"})
    assert expected in failure(capsys, "yolo", source, "--out", tmp_path / "out")


@pytest.mark.parametrize("names", ["", "\n\n", "cat\n\ndog\n", "\ncat\n"])
def test_class_lists_with_blank_lines(tmp_path, capsys, names):
    make_image(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "a.txt").write_text("0 0.5 0.5 0.2 0.5")
    (tmp_path / "in" / "classes.txt").write_text(names)
    message = failure(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert "contains no class name" in message or "class name '' is empty" in message


def test_image_sets_that_are_not_text(tmp_path, capsys):
    root = voc(tmp_path / "in", ["a"], {"train": ["a"]})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"caf\xe9\n")
    assert "train.txt: not UTF-8" in failure(capsys, "voc", root, "--out", tmp_path / "out")


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("hf", "openfoodfacts")])
def test_missing_and_empty_sources(tmp_path, capsys, name):
    assert "does not exist" in failure(capsys, name, tmp_path / "none", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in failure(capsys, name, tmp_path / "empty", "--out", tmp_path / "out")


# ---- invalid values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("category_id", [7], "annotations[0] needs"),
        ("image_id", {"id": 0}, "annotations[0] needs"),
        ("bbox", None, "None of the 1 boxes"),
        ("bbox", ["1", "1", "20", "20"], "None of the 1 boxes"),
        ("bbox", [float("nan")] * 4, "None of the 1 boxes"),
        ("bbox", [50, 50, -20, -20], "None of the 1 boxes"),
    ],
)
def test_coco_values_of_the_wrong_kind(tmp_path, capsys, key, value, expected):
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]])
    data = json.loads((source / "annotations.json").read_text())
    data["annotations"][0][key] = value
    data["categories"][0]["supercategory"] = ["no", "text"]  # which matters to nobody
    (source / "annotations.json").write_text(json.dumps(data))
    assert expected in failure(capsys, "coco", source, "--out", tmp_path / "out")


def test_a_source_without_usable_boxes_is_rejected(tmp_path, capsys):
    source = coco(tmp_path / "in", [[["1", "1", "20", "20"]]] * 4)
    message = failure(capsys, "coco", source, "--out", tmp_path / "out")
    assert "None of the 4 boxes is usable" in message and message.count("['1', '1', '20', '20']") == 3
    message = failure(capsys, "coco", source, "--out", tmp_path / "out", "--allow-bad-boxes")
    assert "the train split has no objects" in message


def test_a_training_split_without_objects_is_rejected(tmp_path, capsys):
    """The reason may be empty label files, a label folder with another name, or that all objects are ignored."""
    box, yaml = "0 0.5 0.5 0.2 0.2", "names: [cat]\ntrain: train/images\nval: val/images\n"
    source = yolo(tmp_path / "yolo", yaml, {"train/images/a.png": "", "val/images/b.png": box})
    words = ("yolo", source, "--out", tmp_path / "out")
    wanted = "the train split has no objects to learn from in its 1 image(s). The classes are cat"
    assert wanted in failure(capsys, *words)
    (source / "train" / "labels" / "a.txt").write_text(box)
    (source / "train" / "labels").rename(source / "train" / "label")
    message = failure(capsys, *words)
    assert wanted in message and f"looked for {source / 'train' / 'labels' / 'a.txt'}" in message
    (source / "train" / "label").rename(source / "train" / "labels")
    assert len(prepared(capsys, *words)[0]) == 2
    crowd = coco(tmp_path / "coco", [[[1, 1, 20, 20]]] * 3, iscrowd=1)
    assert "the train split has no objects to learn from" in failure(capsys, "coco", crowd, "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("mark", "ignored"),
    [(1, True), (0, False), ("1", True), ("0", False), (True, True), ("false", False), ("True", True), (None, False)],
)
def test_marks_of_any_type(tmp_path, capsys, mark, ignored):
    sources = {"coco": coco(tmp_path / "coco", [[[1, 1, 20, 20]]], iscrowd=mark)}
    for name in ("voc", "aabb"):
        sources[name] = tmp_path / name
        make_image(sources[name] / "p0.png")
    (sources["voc"] / "p0.xml").write_text(voc_xml("p0.png", (100, 80), [("cat", mark, [1, 1, 20, 20])]))
    thing = {"class": "cat", "bbox_aabb": [0, 0, 0.5, 0.5], "ignore": mark}
    (sources["aabb"] / "list.json").write_text(json.dumps([{"image": "p0.png", "objects": [thing]}]))
    for name, source in sources.items():
        words = (
            "--split-ratio",
            "0,0,100",
            "--out",
            tmp_path / "out" / name,
        )  # a training split without objects is rejected
        records, *_ = prepared(capsys, name, source, *words)
        assert records["p0"]["objects"]["ignore"] == [ignored], name


def test_names_that_no_file_system_accepts_are_listed_with_all_errors(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]] * 4)
    data = json.loads((source / "annotations.json").read_text())
    for image, name in zip(data["images"], ["é" * 150 + ".png", "a\0b.png", "p3.png/deep.png"], strict=False):
        image["file_name"] = name
    (source / "annotations.json").write_text(json.dumps(data))
    message = failure(capsys, "coco", source, "--out", tmp_path / "out")
    assert "longer than 255 bytes" in message and "NUL character" in message
    assert "'p3.png' is the name of both an image and a folder" in message and message.count("missing:") == 3


def test_a_file_name_that_is_not_unicode_is_a_user_error(tmp_path, capsys):
    name = os.fsdecode(b"\xff.jpg")
    source = yolo(tmp_path / "in", "train: images\nnames: [cat]\n", {f"images/{name}": "0 0.5 0.5 0.2 0.5"})
    message = failure(capsys, "yolo", source, "--out", tmp_path / "out")
    assert "not valid Unicode" in message and "udcff" in message


# ---- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--split-ratio", "80,20"],
        ["--split-ratio", "a,b,c"],
        ["--split-ratio", "0,0,0"],
        ["--rename", "ab"],
        ["--classes", " , "],
    ],
)
def test_invalid_arguments(tmp_path, arguments):
    with pytest.raises(SystemExit) as stop:
        main(["coco", str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2


@pytest.mark.parametrize("name", ["file", "file/out", "file/deep/out", "loop", "loop/out"])
def test_output_paths_where_no_folder_can_be_created(tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]])
    for command in (("coco", source), ("nutrition", "--num-images", "1")):
        message = failure(capsys, *command, "--out", tmp_path / name)
        assert "is not a folder" in message or "is a file" in message


@pytest.mark.parametrize("name", ["voc", "yolo"])
def test_linked_folders_are_read_without_following_loops(tmp_path, capsys, name):
    far = tmp_path / "far"
    if name == "voc":
        make_image(far / "a.png")
        (far / "a.xml").write_text(voc_xml("a.png", (100, 80), [("cat", 0, [1, 1, 20, 20])]))
    else:
        yolo(tmp_path / "in", "names: [cat]\n", {"../far/a.png": "0 0.5 0.5 0.2 0.5"})
    (tmp_path / "in").mkdir(exist_ok=True)
    for split in ("train", "val"):
        (tmp_path / "in" / split).symlink_to(far)
    (far / "back").symlink_to(tmp_path / "in")
    records, *_ = prepared(capsys, name, tmp_path / "in", "--out", tmp_path / "out")
    assert {key: record["split"] for key, record in records.items()} == {"train/a": "train", "val/a": "validation"}


def test_broken_links_are_missing_images(tmp_path, capsys):
    source = yolo(tmp_path / "in", "names: [cat]\ntrain: .\n", {"a.png": "0 0.5 0.5 0.2 0.5"})
    (source / "b.png").symlink_to("gone.png")
    (source / "c.png").symlink_to("c.png")
    message = failure(capsys, "yolo", source, "--out", tmp_path / "out")
    assert "b: missing" in message and "c: missing" in message and "2 problem(s)" in message


def test_a_dataset_behind_a_link_is_replaced_there(tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]])
    for _ in range(2):
        prepared(capsys, "coco", source, "--out", tmp_path / "link", "--overwrite", "--copy-images")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "images" / "p0.png").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("coco", "in", "--copy-images", "--out", "out"),
        ("nutrition", "--num-images", "3", "--out", "out"),
        ("nutrition", "--num-images", "10", "--as-openfoodfacts", "out"),
    ],
)
def test_a_full_disk_leaves_nothing_behind(tmp_path, command):
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]])
    Image.effect_noise((300, 300), 90).save(source / "p0.png")

    def small_files():  # a write beyond the limit fails as one on a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = run(*(tmp_path / word if word in {"in", "out"} else word for word in command), preexec_fn=small_files)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "Free some space" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_pose_rows_contain_a_box_and_key_points(tmp_path, capsys):
    points = " ".join("0.3 0.4" for _ in range(12))
    source = yolo(
        tmp_path / "pose", "names: [cat]\nkpt_shape: [12, 2]\n", {"images/a.png": f"0 0.5 0.5 0.2 0.2 {points}"}
    )
    records, problems, _ = prepared(capsys, "yolo", source, "--out", tmp_path / "out")
    assert records["images/a"]["objects"]["bbox"] == [[40, 32, 60, 48]] and problems == []


def test_yolo_label_files_without_an_image_are_reported_as_missing_images(tmp_path, capsys):
    flat = yolo(tmp_path / "flat", "names: [cat]\n", {"a.png": "0 0.5 0.5 0.2 0.2"})
    (flat / "lost.txt").write_text("0 0.5 0.5 0.2 0.2")
    (flat / "notes.txt").write_text("0 things to do, and some more of them")
    error = failure(capsys, "yolo", flat, "--out", tmp_path / "out")
    assert "lost: missing" in error and "notes" not in error
    deep = yolo(
        tmp_path / "deep",
        "names: [cat]\ntrain: images/train\nval: images/val\n",
        {"images/train/a.png": "0 0.5 0.5 1 1"},
    )
    (deep / "images" / "val").mkdir()
    (deep / "labels" / "train" / "sub").mkdir()
    (deep / "labels" / "val").mkdir()
    assert "val: images/val, which contains no image" in prepared(capsys, "yolo", deep, "--out", tmp_path / "fine")[2]
    for lost in ("train/sub/first.txt", "val/second.txt"):
        (deep / "labels" / lost).write_text("0 0.5 0.5 0.2 0.2")
    error = failure(capsys, "yolo", deep, "--out", tmp_path / "out")
    assert "first: missing" in error and "second: missing" in error


def test_images_in_hidden_folders_are_not_read(tmp_path, capsys):
    source = yolo(tmp_path / "set", "names: [cat]\n", {"images/a.png": "0 0.5 0.5 0.2 0.2"})
    make_image(source / "images" / ".ipynb_checkpoints" / "a-checkpoint.png")
    assert list(prepared(capsys, "yolo", source, "--out", tmp_path / "out")[0]) == ["images/a"]


def test_percent_and_fractions_are_not_taken_for_pixels(tmp_path, capsys):
    percent = coco(tmp_path / "percent", [[[10, 10, 80, 80], [5, 5, 40, 60]]] * 5, size=(400, 300))
    assert "so they may be percentages" in failure(capsys, "coco", percent, "--out", tmp_path / "out")
    fractions = coco(tmp_path / "fractions", [[[0.1, 0.1, 0.5, 0.5]]])
    assert "1 of 1 boxes lie within one pixel" in failure(capsys, "coco", fractions, "--out", tmp_path / "out")
    records, *_ = prepared(capsys, "coco", percent, "--out", tmp_path / "out", "--allow-bad-boxes")
    assert len(records) == 5


def test_objects_without_a_box_are_listed_under_the_id_of_their_record(tmp_path, capsys):
    """Two VIA files have images with the same names, and each image has a point."""
    point = {"shape_attributes": {"name": "point", "cx": 3, "cy": 4}, "region_attributes": {"class": "cat"}}
    box = {
        "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 30, "height": 40},
        "region_attributes": {"class": "cat"},
    }
    for split in ("train", "val"):
        make_image(tmp_path / "via" / split / "a.png")
        entry = {"filename": "a.png", "size": 1, "regions": [point, box], "file_attributes": {}}
        (tmp_path / "via" / split / "via_region_data.json").write_text(json.dumps({"a.png1": entry}))
    records, problems, _ = prepared(capsys, "via", tmp_path / "via", "--out", tmp_path / "out")
    assert [entry["kind"] for entry in problems] == ["no_box"] * 2
    assert {entry["id"] for entry in problems} == set(records) and len(records) == 2


def test_hf_does_not_accept_the_images_option(tmp_path, capsys):
    error = failure(capsys, "hf", tmp_path / "t.parquet", "--images", tmp_path, "--out", tmp_path / "out")
    assert "--images is read by" in error


# ---- text formats, and the files of more tools --------------------------------------------------------------------------

KITTI = "Car 0 0 0 10 20 30 40 1 1 1 1 1 1 0"
# {format: (file, its content)}; each has one object in a.png
SOURCES = {
    "kitti": ("a.txt", f"{KITTI}\n"),
    "dota": ("a.txt", "imagesource:GF-2\n1 2 30 2 30 40 1 40 ship 0\n"),
    "visdrone": ("a.txt", "10,20,30,40,1,4,0,1\n"),
    "wider": ("wider_face_train_bbx_gt.txt", "a.png\n1\n10 20 30 40 0 0 0 0 0 0\n"),
    "createml": ("a.json", '[{"image": "a.png", "annotations": []}]'),
    "supervisely": ("a.png.json", '{"size": {"width": 100, "height": 80}, "objects": []}'),
    "labelme_xml": ("a.xml", "<annotation><filename>a.png</filename><object><polygon/></object></annotation>"),
    "cvat": ("annotations.xml", '<annotations><track id="0" label="cup"><box frame="0"/></track></annotations>'),
}
IN_ROWS = ("kitti", "dota", "visdrone")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (gzip.compress, "is compressed (gzip). Unpack it first: gunzip"),
        (lambda content: b"caf\xe9 \n" + content, "looks like CP1252"),
        (lambda content: bytes(range(256)), "its encoding is unknown"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, capsys, name, damage, expected):
    file, content = SOURCES[name]
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / file).write_bytes(damage(content.encode()))
    message = failure(capsys, name, tmp_path / "in", "--out", tmp_path / "out")
    assert expected in message and str(tmp_path / "in" / file) in message


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("labelme_xml", "cvat")])
def test_utf_16_without_a_mark_is_named(tmp_path, capsys, name):
    """XML, of which the parser reads it, excepted."""
    file, content = SOURCES[name]
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / file).write_text(content, encoding="utf-16-le")
    assert "it looks like UTF-16LE" in failure(capsys, name, tmp_path / "in", "--out", tmp_path / "out")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("content", [b"", b"\n \n", b"1" * 5000, b"1 " * 5000, b"[" * 100_000, b"nan " * 20])
def test_files_without_anything_to_read_are_one_message(tmp_path, capsys, name, content):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / SOURCES[name][0]).write_bytes(content)
    for command in (name, "auto"):
        message = failure(capsys, command, tmp_path / "in", "--out", tmp_path / "out")
        lines = message.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1 and str(tmp_path / "in") in message


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        (
            "kitti",
            f"{KITTI}\nCar 0 0 0 10 20",
            ":2: needs a type, truncated, occluded, alpha, the box and seven numbers in 3D",
        ),
        ("kitti", f"{KITTI}\n{KITTI.replace('10', 'x')}", ":2: needs a type"),
        ("kitti", f"{KITTI}\n{KITTI.replace('10', 'inf')}", ":2: needs a type"),
        (
            "dota",
            "1 2 3 2 3 4 1 4 ship 0\n1 2 3 2 3",
            ":2: needs eight numbers, a category and a difficulty, got 1 2 3 2 3",
        ),
        ("dota", "1 2 3 2 3 4 1 4 ship 0\n1 2 3 2 3 4 1 4 7 0", ":2: needs eight numbers, a category"),
        ("dota", "1 2 3 2 3 4 1 4 ship 0\n1 2 3 2 3 4 1 nan ship 0", ":2: needs eight numbers"),
        ("visdrone", "10,20,30,40,1,4,0,1\n10,20,30", ":2: needs eight whole numbers, got 10,20,30"),
        ("visdrone", "10,20,30,40,1,4,0,1\n10,20,30,40,0.9,4,0,1", ":2: needs eight whole numbers"),
        ("visdrone", "10,20,30,40,1,4,0,1\n10,20,30,40,1,12,0,1", ":2: needs a score of 0 or 1, a category up to 11"),
    ],
)
def test_rows_of_text_formats_that_cannot_be_read_are_named(tmp_path, capsys, name, rows, expected):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.txt").write_text(rows)
    message = failure(capsys, name, tmp_path / "in", "--out", tmp_path / "out")
    assert f"{tmp_path / 'in' / 'a.txt'}{expected}" in message


@pytest.mark.parametrize("name", IN_ROWS)
def test_one_corrupt_file_among_others_is_named(tmp_path, capsys, name):
    for image in ("a", "b"):
        make_image(tmp_path / "in" / f"{image}.png")
        (tmp_path / "in" / f"{image}.txt").write_text(SOURCES[name][1])
    (tmp_path / "in" / "b.txt").write_bytes(b"\xff\xfe1\0")
    assert f"{tmp_path / 'in' / 'b.txt'} is UTF-16 text" in failure(
        capsys, name, tmp_path / "in", "--out", tmp_path / "out"
    )
    (tmp_path / "in" / "b.txt").write_text(SOURCES[name][1])
    (tmp_path / "in" / "b.png").unlink()
    assert "b: missing" in failure(capsys, name, tmp_path / "in", "--out", tmp_path / "out")
    message = failure(capsys, name, tmp_path / "in" / "a.txt", "--out", tmp_path / "out")
    assert "is a file. Pass the folder that contains the annotation files of all images" in message


@pytest.mark.parametrize("suffix", [".json", ".xml"])
def test_auto_names_a_corrupt_file(tmp_path, capsys, suffix):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / f"a{suffix}").write_text('[{"image": ' if suffix == ".json" else "<")
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert f"1 are corrupt, such as {tmp_path / 'in' / f'a{suffix}'}: not {suffix[1:].upper()}" in message


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("points", None, "bad_box"),
        ("points", {"exterior": [[1, 2], "x"]}, "bad_box"),
        ("points", {"exterior": [[1, 2], [1e400, 3]]}, "bad_box"),
        ("geometryType", "bitmap", "bad_box"),
        ("geometryType", None, "no_box"),
        ("geometryType", ["x"], "no_box"),
    ],
)
def test_supervisely_values_of_the_wrong_kind(tmp_path, capsys, key, value, kind):
    make_image(tmp_path / "in" / "img" / "a.png")
    good = {"classTitle": "cup", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [30, 40]]}}
    content = {"size": {"width": 100, "height": 80}, "objects": [good, good | {key: value, "bitmap": 7}]}
    (tmp_path / "in" / "a.png.json").write_text(json.dumps(content))
    (tmp_path / "in" / "meta.json").write_text(
        json.dumps({"classes": [7, {"title": 7, "shape": "any"}, {"shape": []}]})
    )
    words = ("supervisely", tmp_path / "in", "--split-ratio", "0,0,100", "--out", tmp_path / "out")
    records, problems, _ = prepared(capsys, *words)
    assert records["img/a"]["objects"]["bbox"] == [[1, 2, 30, 40]] and [entry["kind"] for entry in problems] == [kind]
    content["objects"][1] = {"classTitle": None}
    (tmp_path / "in" / "a.png.json").write_text(json.dumps(content))
    assert "objects[1] needs classTitle" in failure(capsys, *words[:-1], tmp_path / "o")
