"""data_prep: datasets below SOURCE keep their splits, names are found in any Unicode form, what is left out is listed."""

import base64
import io
import json
import os
import shutil
import unicodedata

import pytest
from PIL import Image

from tests.helpers.sources import coco, failure, kinds, make_image, prepared, voc, voc_xml, yolo

CAT = [("cat", 0, [1, 2, 30, 40])]
ROW = "0 0.5 0.5 0.2 0.2\n"


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def labelme(path, **content):
    shapes = [{"label": "cat", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"shapes": shapes} | content))


# ---- folders above ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["coco", "coco_in_annotations", "labelme", "csv", "csv_images", "csv_each", "yolo", "voc", "voc_flat", "via"],
)
def test_images_have_the_same_split_if_source_is_a_folder_above(tmp_path, capsys, name):
    folder = tmp_path / "in" / "wrap" / "set"
    names = [f"p{i}.png" for i in range(40)]
    for image in names:
        make_image(
            folder
            / ("JPEGImages" if name == "voc" else "images" if name in ("yolo", "csv_images", "csv_each") else "")
            / image
        )
        if name == "csv_each":
            (folder / image.replace("png", "csv")).write_text("1,2,30,40,cat\n")
        if name == "labelme":
            labelme(folder / image.replace("png", "json"), imagePath=image)
        if name.startswith("voc"):
            xml = folder / ("Annotations" if name == "voc" else "") / image.replace("png", "xml")
            xml.parent.mkdir(exist_ok=True)
            xml.write_text(voc_xml(image, (100, 80), CAT))
        if name == "yolo":
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / image.replace("png", "txt")).write_text(ROW)
    if name == "yolo":
        (folder / "labels" / "classes.txt").write_text("cat\n")
    if name in ("csv", "csv_images"):
        (folder / "boxes.csv").write_text("".join(f"{image},1,2,30,40,cat\n" for image in names))
    if name == "via":
        shape = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
        regions = [{"shape_attributes": shape, "region_attributes": {"kind": "cat"}}]
        entries = {image: {"filename": image, "regions": regions} for image in names}
        (folder / "via.json").write_text(json.dumps(entries))
    if name.startswith("coco"):
        coco(folder, [[[1, 2, 30, 40]]] * 40)
    if name == "coco_in_annotations":
        (folder / "annotations").mkdir()
        (folder / "annotations.json").rename(folder / "annotations" / "all.json")
    found = []
    for number, source in enumerate((folder, folder.parent, folder.parent.parent)):
        command = name.partition("_")[0]
        records, problems, _ = prepared(capsys, command, source, "--out", tmp_path / f"out{number}")
        assert not problems and len(records) == 40
        found.append({os.path.basename(record["image"]): record["split"] for record in records.values()})
    assert {*found[0].values()} == {"train", "validation", "test"} and found[0] == found[1] == found[2]


def test_a_devkit_two_folders_down_keeps_its_image_sets(tmp_path, capsys):
    voc(tmp_path / "in" / "VOCtrainval" / "VOCdevkit" / "VOC2007", ["a", "b"], {"train": ["a"], "val": ["b"]})
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {"a": "train", "b": "validation"}


def test_a_folder_of_annotations_inside_another_is_one_dataset(tmp_path, capsys):
    make_image(tmp_path / "in" / "images" / "a.jpg")
    (tmp_path / "in" / "annotations" / "xmls").mkdir(parents=True)
    (tmp_path / "in" / "annotations" / "xmls" / "a.xml").write_text(voc_xml("a.jpg", (100, 80), CAT))
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert list(records) == ["xmls/a"]


def test_several_datasets_below_source_are_named(tmp_path, capsys):
    for name in ("one", "two"):
        yolo(tmp_path / "in" / "sets" / name, "names: [cat]\n", {"images/a.png": ROW})
        coco(tmp_path / "coco" / "sets" / name, [[[1, 2, 30, 40]]])
    message = failure(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert all(str(tmp_path / "in" / "sets" / name / "data.yaml") in message for name in ("one", "two"))
    message = failure(capsys, "coco", tmp_path / "coco", "--out", tmp_path / "out")
    assert "sets/one/annotations.json, sets/two/annotations.json. Pass one of them as SOURCE" in message


def test_split_folders_inside_a_wrapping_folder(tmp_path, capsys):
    for split in ("train", "valid"):
        coco(tmp_path / "in" / "zip" / "export" / split, [[[1, 1, 20, 20]]], name="_annotations.coco.json")
    records, *_ = prepared(capsys, "coco", tmp_path / "in", "--out", tmp_path / "out")
    assert sorted(record["split"] for record in records.values()) == ["train", "validation"]


# ---- YOLO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["", "test:\n"])
def test_a_labelled_split_that_data_yaml_does_not_name_is_a_warning(tmp_path, capsys, test):
    files = {f"{split}/images/{i}.png": ROW for split in ("train", "valid", "test") for i in range(3)}
    files["test/images/unlabelled.png"] = None
    root = yolo(tmp_path / "in", f"names: [cat]\ntrain: train/images\nval: valid/images\n{test}", files)
    records, _, printed = prepared(capsys, "yolo", root, "--out", tmp_path / "out")
    assert len(records) == 6
    assert (
        f"{root / 'data.yaml'} names no test split, so 3 labelled image(s) in {root / 'test' / 'images'} are left out. To use "
        "them, add the line `test: test/images`"
    ) in printed

    (root / "data.yaml").write_text("names: [cat]\ntrain: train/images\nval: valid/images\ntest: test/images\n")
    records, _, printed = prepared(capsys, "yolo", root, "--out", tmp_path / "all")
    assert len(records) == 10 and "left out" not in printed


def test_class_names_in_each_folder_of_labels(tmp_path, capsys):
    for split in ("train", "val"):
        make_image(tmp_path / "in" / "images" / split / "a.png")
        (tmp_path / "in" / "labels" / split).mkdir(parents=True)
        (tmp_path / "in" / "labels" / split / "a.txt").write_text(ROW)
        (tmp_path / "in" / "labels" / split / "classes.txt").write_text("cat\n")
    records, *_ = prepared(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert sorted(record["split"] for record in records.values()) == ["train", "validation"]
    (tmp_path / "in" / "labels" / "val" / "classes.txt").write_text("dog\ncat\n")
    message = failure(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "o")
    assert "several files of class names that differ" in message


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_disk", "written"), [(composed, decomposed), (decomposed, composed)])
@pytest.mark.parametrize("name", ["coco", "csv", "voc", "labelme", "yolo", "yolo_list"])
def test_names_in_another_unicode_form_are_found(tmp_path, capsys, name, on_disk, written):
    root = tmp_path / "in"
    folder, image, label = on_disk("café"), on_disk("naïve"), written("naïve")
    path = make_image(root / ("images" if name.startswith("yolo") else folder) / f"{image}.png")
    if name == "coco":
        coco(root, [[[1, 2, 30, 40]]])
        data = json.loads((root / "annotations.json").read_text())
        data["images"][0]["file_name"] = f"{written('café')}/{label}.png"
        (root / "annotations.json").write_text(json.dumps(data))
    elif name == "csv":
        (root / "boxes.csv").write_text(f"{written('café')}/{label}.png,1,2,30,40,cat\n")
    elif name == "voc":
        (root / "Annotations").mkdir()
        (root / folder).rename(root / "JPEGImages")
        (root / "Annotations" / f"{label}.xml").write_text(voc_xml(f"{label}.png", (100, 80), CAT))
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text(image)
        path = root / "JPEGImages" / path.name
    elif name == "labelme":
        labelme(root / folder / f"{label}.json", imagePath=f"{label}.png")
    else:
        (root / "labels").mkdir()
        (root / "labels" / f"{label}.txt").write_text(ROW)
        (root / "data.yaml").write_text("names: [cat]\n" + ("train: list.txt\n" if name == "yolo_list" else ""))
        (root / "list.txt").write_text(f"images/{label}.png\n")
    records, problems, _ = prepared(capsys, name.partition("_")[0], root, "--out", tmp_path / "out")
    (record,) = records.values()
    assert record["image"] == str(path) and len(record["objects"]["bbox"]) == 1
    assert not problems


@pytest.mark.parametrize(("name", "encoding"), [("写真", "SHIFT_JIS"), ("紅綠燈照片", "BIG5")])
def test_names_on_disk_in_another_encoding_are_named_with_it(tmp_path, capsys, name, encoding):
    """As after unpacking a zip file that was made on Windows."""
    root = coco(tmp_path / "in", [[[1, 2, 30, 40]]] * 2)
    os.rename(root / "p1.png", os.fsencode(root) + b"/" + f"{name}.png".encode(encoding))
    data = json.loads((root / "annotations.json").read_text())
    data["images"][1]["file_name"] = f"{name}.png"
    (root / "annotations.json").write_text(json.dumps(data))
    remedy = f"Rename the files, for example: convmv -r --notest -f {encoding} -t UTF-8 {root}"
    expected = f"{root}: 1 file name(s) are not UTF-8; they look like {encoding}. {remedy}"
    message = failure(capsys, "coco", root, "--out", tmp_path / "out")
    assert "p1: missing" not in message and f"{name}: missing" in message and expected in message
    *_, printed = prepared(capsys, "coco", root, "--skip-bad-images", "--out", tmp_path / "out")
    assert expected in printed

    yolo(tmp_path / "yolo", "names: [cat]\n", {"p1.png": ROW})
    for suffix in (".png", ".txt"):
        os.rename(
            tmp_path / "yolo" / f"p1{suffix}",
            os.fsencode(tmp_path / "yolo") + b"/" + f"{name}{suffix}".encode(encoding),
        )
    message = failure(capsys, "yolo", tmp_path / "yolo", "--out", tmp_path / "o")
    assert f"is not valid Unicode: file names are not UTF-8; they look like {encoding}" in message


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_labelme_files_that_name_themselves_have_their_image_inside(tmp_path, capsys):
    content = io.BytesIO()
    Image.new("RGB", (100, 80), "red").save(content, "PNG")
    data = base64.b64encode(content.getvalue()).decode()
    labelme(tmp_path / "in" / "apc2016_obj3.json", imagePath="apc2016_obj3.json", imageData=data)
    records, *_ = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert records["apc2016_obj3"]["image"] == "images/apc2016_obj3.png"
    assert Image.open(tmp_path / "out" / "images" / "apc2016_obj3.png").getpixel((0, 0)) == (255, 0, 0)

    labelme(tmp_path / "in" / "apc2016_obj3.json", imagePath="apc2016_obj3.json")
    assert "missing" in failure(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "o")
    beside = make_image(tmp_path / "in" / "apc2016_obj3.jpg")
    records, *_ = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out", "--overwrite")
    assert records["apc2016_obj3"]["image"] == str(beside)


def test_regions_without_a_class_are_dropped_and_listed(tmp_path, capsys):
    shape = {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}
    for name in ("a.png", "b.png"):
        make_image(tmp_path / "in" / name)
    named, nameless = ({"shape_attributes": shape, "region_attributes": kind} for kind in ({"kind": "cat"}, {}))
    project = {
        "a": {"filename": "a.png", "regions": [named, nameless]},
        "b": {"filename": "b.png", "regions": [nameless, named]},
    }
    file = tmp_path / "in" / "via.json"
    file.write_text(json.dumps(project))
    records, problems, printed = prepared(capsys, "via", file, "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["cat"] and records["b"]["objects"]["category"] == ["cat"]
    assert kinds(problems) == [("a", "no_class", [1, 2, 4, 6]), ("b", "no_class", [1, 2, 4, 6])]
    assert "2 object(s) have no class and are dropped, such as in a; --default-class NAME keeps them" in printed
    records, problems, _ = prepared(capsys, "via", file, "--default-class", "dog", "--out", tmp_path / "all")
    assert records["a"]["objects"]["category"] == ["cat", "dog"] and not problems


def test_images_without_an_annotation_file_are_listed(tmp_path, capsys):
    labelme(tmp_path / "in" / "a.json", imagePath="a.png")
    for name in ("a.png", "b.png", "c.jpg"):
        make_image(tmp_path / "in" / name)
    records, problems, printed = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert list(records) == ["a"]
    assert kinds(problems) == [("b", "no_annotation", "b.png"), ("c", "no_annotation", "c.jpg")]
    assert "2 image(s) without a split or an annotation are left out, such as b" in printed


def test_images_turned_because_of_exif_are_counted(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = coco(tmp_path / "in", [[[1, 2, 30, 40]]] * 3)
    for number in range(2):
        Image.new("RGB", (100, 80), ("red", "blue")[number]).save(folder / f"p{number}.png", exif=exif)
    data = json.loads((folder / "annotations.json").read_text())
    data["images"][1] |= {"width": 80, "height": 100}
    (folder / "annotations.json").write_text(json.dumps(data))
    records, _, printed = prepared(capsys, "coco", folder, "--out", tmp_path / "out")
    assert "EXIF: 2 image(s) are turned upright, 1 of them together with their boxes" in printed
    assert records["p0"]["objects"]["bbox"] == [[38, 1, 78, 31]] and records["p1"]["objects"]["bbox"] == [
        [1, 2, 31, 42]
    ]
    shutil.rmtree(tmp_path / "in")
    *_, printed = prepared(capsys, "coco", coco(tmp_path / "in", [[[1, 2, 30, 40]]]), "--out", tmp_path / "plain")
    assert "EXIF" not in printed
