"""data_prep: tables whose columns and box convention are inferred: `datasets` tables and JSON lines."""

import json

import datasets
import numpy as np
import pytest

from boxtune.data.boxes import box_xyxy_to_xywh
from tests.helpers.sources import failure, kinds, make_image, prepared

SIDES = np.array([100, 80, 100, 80])
# Some objects are near the borders of the image, which is what distinguishes conventions.
BOXES_XYXY = np.array([[60, 50, 95, 75], [5, 4, 45, 40], [50, 5, 98, 30], [2, 45, 30, 78]])
WRITTEN = {
    "xyxy": lambda boxes: boxes,
    "xywh": box_xyxy_to_xywh,
    "cxcywh": lambda boxes: np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1),
    "yxyx": lambda boxes: boxes[:, [1, 0, 3, 2]],
}


def lines(
    folder, boxes: list, parent: str = "objects", bbox: str = "bbox", label: str = "category", rows: bool = False
):
    """metadata.jsonl with two boxes per image, and an image without any."""
    written = []
    for i in range(0, len(boxes) + 1, 2):
        make_image(folder / f"p{i}.png")
        own = [list(map(float, box)) for box in boxes[i : i + 2]]
        objects = {bbox: own, label: ["cup"] * len(own), "area": [1] * len(own)}
        if rows:
            objects = [{bbox: box, label: "cup", "area": 1} for box in own]
        written.append({"file_name": f"p{i}.png"} | ({parent: objects} if parent else objects))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, written)) + "\n\n")
    return folder


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    ("layout", "fractions"), [("xyxy", False), ("xywh", False), ("cxcywh", False), ("xywh", True), ("cxcywh", True)]
)
def test_the_convention_is_inferred_from_the_boxes(tmp_path, capsys, layout, fractions, rows):
    boxes = WRITTEN[layout](BOXES_XYXY) / (SIDES if fractions else 1)
    folder = lines(tmp_path / "in", boxes, rows=rows)
    records, problems, printed = prepared(capsys, "jsonl", folder, "--out", tmp_path / "out")
    found = [box for name in ("p0", "p2") for box in records[name]["objects"]["bbox"]]
    assert np.abs(np.array(found) - BOXES_XYXY).max() < 0.002 and not problems
    # With boxes in fractions, nobody knows whether areas are in square pixels.
    area = "source_area" if fractions else "area"
    assert records["p4"]["objects"]["bbox"] == [] and records["p0"]["objects"][area] == [1, 1]
    assert (
        f"read as {layout}; of 4 boxes in {'fractions' if fractions else 'pixels'}, " in printed
        and f"{layout} fits 4" in printed
    )


@pytest.mark.parametrize("layout", WRITTEN)
def test_the_user_may_name_the_convention(tmp_path, capsys, layout):
    folder = lines(tmp_path / "in", WRITTEN[layout](BOXES_XYXY))
    records, *_ = prepared(capsys, "jsonl", folder, "--bbox-format", layout, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == BOXES_XYXY[:2].tolist()


def test_boxes_that_fit_several_conventions_need_an_option(tmp_path, capsys):
    folder = lines(tmp_path / "in", np.array([[20, 20, 30, 30], [22, 20, 30, 30]]))
    message = failure(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert "Several box formats fit" in message and "--bbox-format {xyxy,xywh,yxyx,cxcywh}" in message
    assert "[20.0, 20.0, 30.0, 30.0]" in message


def test_boxes_that_fit_no_convention_are_shown(tmp_path, capsys):
    folder = lines(tmp_path / "in", np.array([[900, 20, 30, 30], [22, 720, 30, 30], [10, 10, 500, 3], [5, 5, 6, 6]]))
    message = failure(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert "No box format fits" in message and message.count("(100, 80): [") == 3
    # A convention that the user names is checked too, by the common pipeline.
    again = failure(capsys, "jsonl", folder, "--bbox-format", "xyxy", "--out", tmp_path / "out")
    assert "The box format looks wrong" in again and "State the format with --bbox-format {xyxy," in again


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ({"parent": "annotations", "bbox": "boxes", "label": "labels"}, []),
        ({"parent": "", "bbox": "bbox", "label": "label"}, []),
        (
            {"parent": "things", "bbox": "where", "label": "what"},
            ["--bbox-field", "things.where", "--label-field", "what"],
        ),
    ],
)
def test_fields_are_found_or_named(tmp_path, capsys, names, flags):
    folder = lines(tmp_path / "in", BOXES_XYXY, **names)
    records, *_ = prepared(capsys, "jsonl", folder, *flags, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == BOXES_XYXY[:2].tolist()
    assert records["p0"]["objects"]["category"] == ["cup", "cup"]
    if flags:
        message = failure(capsys, "jsonl", folder, "--out", tmp_path / "o")
        assert "The first row has file_name, things" in message and "--bbox-field" in message


def test_jsonl_faults_are_collected(tmp_path, capsys):
    folder = lines(tmp_path / "in", BOXES_XYXY)
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('{"file_name": 5, "objects": null}\n{"file_name": "p0.png", "objects": 3}\n')
        file.write('{"file_name": "p0.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": []}}\n')
    message = failure(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert ":5: file_name must name an image, got 5" in message and ":6: objects must be rows" in message
    assert ":7: the columns of objects differ in length" in message
    (folder / "metadata.jsonl").write_text("[]\n{\n")
    message = failure(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert ":1: needs an object" in message and ":2: not JSON" in message


def table(folder, categories: str, image: str = "image") -> datasets.Dataset:
    label = datasets.ClassLabel(names=["jar", "cup"]) if categories == "numbered" else datasets.Value("string")
    cup = 1 if categories == "numbered" else "cup"
    rows = [
        {image: str(make_image(folder / f"{i}.png")), "objects": {"bbox": boxes, "category": [cup] * 2}}
        for i, boxes in enumerate([BOXES_XYXY[:2].tolist(), BOXES_XYXY[2:].tolist()])
    ]
    objects = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
        "category": datasets.List(label),
    }
    return datasets.Dataset.from_list(rows, features=datasets.Features({image: datasets.Image(), "objects": objects}))


@pytest.mark.parametrize("categories", ["numbered", "text"])
@pytest.mark.parametrize("image", ["image", "photo"])
def test_hf_tables(tmp_path, capsys, categories, image):
    table(tmp_path / "p", categories, image).save_to_disk(tmp_path / "in")
    records, problems, printed = prepared(capsys, "hf", tmp_path / "in", "--out", tmp_path / "out")
    assert [record["objects"]["bbox"] for _, record in sorted(records.items())] == [
        BOXES_XYXY[:2].tolist(),
        BOXES_XYXY[2:].tolist(),
    ]
    assert {name for record in records.values() for name in record["objects"]["category"]} == {"cup"}
    assert all((tmp_path / "out" / record["image"]).is_file() for record in records.values()) and not problems
    assert "read as xyxy" in printed and ("no objects of class jar" in printed) == (categories == "numbered")


def test_hf_tables_without_images_are_rejected(tmp_path, capsys):
    table(tmp_path / "p", "text").rename_column("image", "photo").to_parquet(tmp_path / "t.parquet")
    message = failure(capsys, "hf", tmp_path / "t.parquet", "--image-field", "foto", "--out", tmp_path / "out")
    assert "has no column foto; it has photo, objects" in message
    message = failure(capsys, "hf", tmp_path / "t.parquet", "--image-field", "objects", "--out", tmp_path / "out")
    assert "must be of type Image" in message


def test_numbers_for_classes_can_be_named(tmp_path, capsys):
    folder = lines(tmp_path / "in", BOXES_XYXY)
    text = (folder / "metadata.jsonl").read_text().replace('"cup"', "0").replace('"category"', '"category_id"')
    (folder / "metadata.jsonl").write_text(text)
    assert "--rename 0=NAME" in prepared(capsys, "jsonl", folder, "--out", tmp_path / "first")[2]
    records, problems, _ = prepared(capsys, "jsonl", folder, "--rename", "0=jug", "--out", tmp_path / "out")
    assert records["p0"]["objects"]["category"] == ["jug", "jug"] and kinds(problems) == []


@pytest.mark.parametrize("layout", ["xyxy", "yxyx"])
def test_corners_in_fractions_may_be_x_or_y_first(tmp_path, capsys, layout):
    """No check can distinguish them, so the user must."""
    folder = lines(tmp_path / "in", WRITTEN[layout](BOXES_XYXY / SIDES))
    message = failure(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert "Several box formats fit" in message and "xyxy fits 4" in message and "yxyx fits 4" in message
    records, *_ = prepared(capsys, "jsonl", folder, "--bbox-format", layout, "--out", tmp_path / "out")
    assert np.abs(np.array(records["p0"]["objects"]["bbox"]) - BOXES_XYXY[:2]).max() < 0.002


def test_a_stray_box_does_not_turn_fractions_into_pixels(tmp_path, capsys):
    many = np.tile(BOXES_XYXY, (60, 1)) / SIDES
    many[7] = [0.5, 0.5, 1.04, 0.9]
    folder = lines(tmp_path / "in", many)
    records, problems, _ = prepared(capsys, "jsonl", folder, "--bbox-format", "xyxy", "--out", tmp_path / "out")
    assert records["p6"]["objects"]["bbox"][1] == [50, 40, 100, 72] and [kind for _, kind, _ in kinds(problems)] == [
        "clipped"
    ]


def test_rows_with_other_fields_are_errors_and_not_empty_images(tmp_path, capsys):
    folder = lines(tmp_path / "in", BOXES_XYXY)
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "p0.png", "objects": {"boxes": [[1, 2, 3, 4]], "labels": ["cup"]}}\n')
        file.write('{"file_name": "p2.png", "annotations": [{"bbox": [1, 2, 3, 4], "category": "cup"}]}\n')
    message = failure(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert ":5: neither bbox nor category in objects, which has boxes, labels" in message and ":6: neither" in message


def test_marks_of_ignored_boxes(tmp_path, capsys):
    folder = lines(tmp_path / "in", BOXES_XYXY, parent="")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines() if line]
    for row in rows:
        row |= {"iscrowd": [1, 0][: len(row["bbox"])], "difficult": [0, 0][: len(row["bbox"])], "note": "a\u2028b"}
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    records, *_ = prepared(capsys, "jsonl", folder, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["ignore"] == [True, False] and records["p0"]["note"] == "a\u2028b"


def test_named_fields_are_used_even_if_the_first_rows_are_empty(tmp_path, capsys):
    folder = lines(tmp_path / "in", BOXES_XYXY, rows=True)
    text = (folder / "metadata.jsonl").read_text()
    empty = []
    for i in range(3):
        make_image(folder / f"e{i}.png")
        empty.append(json.dumps({"file_name": f"e{i}.png", "objects": []}))
    (folder / "metadata.jsonl").write_text("\n".join([*empty, text]))
    flags = ["--bbox-field", "objects.bbox", "--label-field", "objects.category"]
    records, *_ = prepared(capsys, "jsonl", folder, *flags, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == BOXES_XYXY[:2].tolist() and records["e1"]["objects"]["bbox"] == []


def test_hf_folders_named_after_splits_with_equal_image_names(tmp_path, capsys):
    for split in ("train", "validation"):
        (tmp_path / "in" / split).mkdir(parents=True)
        part = table(tmp_path / split, "text")
        part.to_parquet(tmp_path / "in" / split / "0000.parquet")
    records, *_ = prepared(capsys, "hf", tmp_path / "in", "--out", tmp_path / "out")
    assert sorted(record["split"] for record in records.values()) == ["train", "train", "validation", "validation"]


def test_a_second_column_of_images_is_left_out(tmp_path, capsys):
    one = table(tmp_path / "p", "text")
    masks = datasets.Dataset.from_dict({"mask": one["image"]}).cast_column("mask", datasets.Image())
    datasets.concatenate_datasets([one, masks], axis=1).save_to_disk(tmp_path / "in")
    records, _, printed = prepared(capsys, "hf", tmp_path / "in", "--out", tmp_path / "out")
    assert "further image columns are left out: mask" in printed
    assert not any("mask" in record for record in records.values())


def test_options_that_a_format_does_not_read_are_rejected(tmp_path, capsys):
    folder = lines(tmp_path / "in", BOXES_XYXY)
    message = failure(capsys, "coco", folder, "--bbox-format", "xywh", "--label-field", "x", "--out", tmp_path / "out")
    assert "--bbox-format is read by jsonl, hf" in message and "--label-field is read by via" in message


def test_an_image_without_objects_may_have_a_text_field_called_annotation(tmp_path, capsys):
    """The field `annotation` often holds the objects; here it is a text."""
    folder = lines(tmp_path / "in", BOXES_XYXY)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().split("\n") if line]
    rows[-1] = rows[-1] | {"objects": [], "annotation": "by Ann"}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, problems, _ = prepared(capsys, "jsonl", folder, "--bbox-format", "xyxy", "--out", tmp_path / "out")
    assert records["p4"]["objects"]["bbox"] == [] and not problems
