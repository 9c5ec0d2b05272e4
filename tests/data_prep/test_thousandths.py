"""data_prep: boxes in thousandths of the image are suspected, and read with --bbox-format; classes without training objects."""

import json

import pytest

from data_prep.pipeline.dataset_warnings import untrained_warnings
from tests.helpers.sources import coco, failure, make_image, prepared, voc_xml

LARGE = (2400, 1800)
WARNING = "no box reaches beyond 1000 in images of up to 2400 pixels"


def test_boxes_up_to_1000_on_larger_images_are_a_warning(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[[100, 200, 300, 400]], [[500, 500, 500, 500]], [[0, 0, 1000, 1000]]], LARGE)
    records, _, printed = prepared(capsys, "coco", folder, "--out", tmp_path / "out")
    assert WARNING in printed and "convert again with --bbox-format xywh1000" in printed
    assert records["p0"]["objects"]["bbox"] == [[100, 200, 400, 600]]

    records, problems, printed = prepared(
        capsys, "coco", folder, "--bbox-format", "xywh1000", "--out", tmp_path / "thousandths"
    )
    assert WARNING not in printed and not problems
    assert records["p0"]["objects"]["bbox"] == [[240, 360, 960, 1080]]
    assert records["p2"]["objects"]["bbox"] == [[0, 0, 2400, 1800]]


@pytest.mark.parametrize(
    ("boxes", "size"),
    [
        ([[[100, 200, 300, 400]], [[500, 500, 501, 400]]], LARGE),  # one reaches beyond 1000
        ([[[100, 200, 300, 400]]] * 4, (1000, 800)),  # no image is larger
        ([[[100, 200, 300, 400]]] * 4, (1100, 800)),  # no coincidence worth a warning
    ],
)
def test_plausible_pixels_are_no_warning(tmp_path, capsys, boxes, size):
    *_, printed = prepared(capsys, "coco", coco(tmp_path / "in", boxes, size), "--out", tmp_path / "out")
    assert "no box reaches beyond 1000" not in printed


def test_thousandths_in_each_format_in_pixels(tmp_path, capsys):
    box = [100, 200, 500, 750]
    image = make_image(tmp_path / "in" / "a.png", *LARGE)
    words = {"csv": "xyxy1000", "voc": "xyxy1000", "labelme": "xyxy1000", "jsonl": "xyxy1000"}
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "boxes.csv").write_text("a.png,100,200,500,750,cat\n")
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(voc_xml("a.png", LARGE, [("cat", 0, box)]))
    (tmp_path / "labelme").mkdir()
    shapes = [{"label": "cat", "points": [box[:2], box[2:]], "shape_type": "rectangle"}]
    (tmp_path / "labelme" / "a.json").write_text(json.dumps({"shapes": shapes, "imagePath": "a.png"}))
    (tmp_path / "jsonl").mkdir()
    row = {"file_name": "a.png", "objects": {"bbox": [box], "category": ["cat"]}}
    (tmp_path / "jsonl" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    rows = {
        "kitti": ("xyxy", "cat 0 0 0 100 200 500 750 1 1 1 1 1 1 0"),
        "dota": ("xyxy", "100 200 500 200 500 750 100 750 cat 0"),
        "visdrone": ("xywh", "100,200,400,550,1,4,0,0"),
        "wider": ("xywh", "a.png\n1\n100 200 400 550"),
        "supervisely": ("xyxy", '{"size": {}, "objects": [{"classTitle": "cat", "geometryType": "rectangle", "points": '
        '{"exterior": [[100, 200], [500, 750]]}}]}'),
    }  # fmt: skip
    for name, (layout, text) in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ("a.png.json" if name == "supervisely" else "a.txt")).write_text(text)
        words[name] = f"{layout}1000"
    for name, layout in words.items():
        arguments = (
            name,
            tmp_path / name,
            "--images",
            image.parent,
            "--bbox-format",
            layout,
            "--out",
            tmp_path / f"out_{name}",
        )
        records, problems, _ = prepared(capsys, *arguments)
        assert records["a"]["objects"]["bbox"] == [[240, 360, 1200, 1350]] and not problems, name


def test_a_layout_that_the_format_does_not_have_is_an_error(tmp_path, capsys):
    folder = coco(tmp_path / "in", [[[100, 200, 300, 400]]], LARGE)
    message = failure(capsys, "coco", folder, "--bbox-format", "xyxy1000", "--out", tmp_path / "out")
    assert "--bbox-format xywh1000 for thousandths" in message
    message = failure(capsys, "aabb", folder, "--bbox-format", "xyxy1000", "--out", tmp_path / "out")
    assert "--bbox-format is read by jsonl, hf, csv" in message


# ---- classes without an object in training ---------------------------------------------------------------------------


def record(*names: str, ignore: bool = False) -> dict:
    boxes = [[0, 0, 1, 1]] * len(names)
    return {"objects": {"bbox": boxes, "category": list(names), "ignore": [ignore] * len(names)}}


def test_classes_that_only_evaluation_has():
    splits = {"train": [record("cat"), record("owl", ignore=True)], "validation": [record("dog"), record("dog", "cat")]}
    splits["test"] = [record("dog", "owl"), record("elk", ignore=True)]
    (warning,) = untrained_warnings(splits, ["cat", "dog", "elk", "owl"])
    assert "of class dog (2 in validation, 1 in test), owl (1 in test), so" in warning
    assert untrained_warnings({"train": splits["train"], "test": [record("cat")]}, ["cat", "dog"]) == []
    assert untrained_warnings({"test": splits["test"]}, ["dog"]) == [], "nothing is trained on this dataset"


def test_the_conversion_and_show_name_them(tmp_path, capsys):
    for split, name in (("train", "cat"), ("valid", "Cat")):
        make_image(tmp_path / "in" / split / "a.jpg")
        (tmp_path / "in" / split / "a.xml").write_text(voc_xml("a.jpg", (100, 80), [(name, 0, [1, 2, 30, 40])]))
    *_, printed = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    warning = "no object in training, but in evaluation, of class Cat (1 in validation)"
    assert f"warning: {warning}" in printed
    from data_prep.__main__ import main

    main(["show", str(tmp_path / "out")])
    assert f"untrained class: {warning}" in capsys.readouterr().out
