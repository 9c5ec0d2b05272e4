"""data_prep: the formats with tables or lists: CSV, AABB, Open Food Facts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from boxtune.data.dataset import read_info
from tests.helpers.records import ROOT
from tests.helpers.sources import failure, make_image, prepared

# A training split needs objects, which these few images may not have, so they all go to the test split.
TO_TEST = ("--split-ratio", "0,0,100")


@pytest.mark.parametrize(
    "text",
    [
        "a.png,1,2,30,40,cat\na.png,5,6,70.5,80,dog\nb.png,,,,,\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,100,80,cat,1,2,30,40\na.png,100,80,dog,5,6,70.5,80\nb.png,100,80,,,,,\n",
        "b.png,100,80,,,,,\na.png,100,80,cat,1,2,30,40\na.png,100,80,dog,5,6,70.5,80\n",
        "label;x1;y1;x2;y2;image\ncat;1;2;30;40;a.png\ndog;5;6;70.5;80;a.png\n;;;;;b.png\n",
        "x0,y0,x1,y1,Image Path,Class Name\n1,2,30,40,images/a.png,cat\n5,6,70.5,80,images/a.png,dog\n,,,,images/b.png,\n",
    ],
    ids=["plain", "tensorflow with header", "tensorflow", "semicolons", "x0 to x1"],
)
def test_csv_columns(tmp_path, capsys, text):
    for name in ("a.png", "b.png"):
        make_image(tmp_path / "in" / "images" / name)
    (tmp_path / "in" / "boxes.csv").write_text(text)
    records, problems, _ = prepared(capsys, "csv", tmp_path / "in", *TO_TEST, "--out", tmp_path / "out")
    first, second = (records[name] for name in sorted(records))
    assert first["objects"]["bbox"] == [[1, 2, 30, 40], [5, 6, 70.5, 80]] and second["objects"]["bbox"] == []
    assert first["objects"]["category"] == ["cat", "dog"] and not problems
    assert first["image"] == str(tmp_path / "in" / "images" / "a.png")


@pytest.mark.parametrize("header", ["", "filename,xmin,ymin,xmax,ymax\n"])
def test_csv_needs_no_class_column_with_default_class(tmp_path, capsys, header):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "boxes.csv").write_text(f"{header}a.png,1,2,30,40\n")
    words = ("csv", tmp_path / "in", "--default-class", "cat", "--out", tmp_path / "out")
    objects = prepared(capsys, *words)[0]["a"]["objects"]
    assert objects == {"bbox": [[1, 2, 30, 40]], "category": ["cat"], "ignore": [False]}


@pytest.mark.parametrize("column", ["difficult", "IsCrowd", "is_crowd", "ignore"])
def test_csv_objects_that_are_marked_are_ignored(tmp_path, capsys, column):
    make_image(tmp_path / "in" / "a.png")
    rows = "a.png,1,2,30,40,cat,0\na.png,5,6,70,80,cat,1\n"
    (tmp_path / "in" / "boxes.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class,{column}\n{rows}")
    records, _, printed = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"]["ignore"] == [False, True] and "not read" not in printed


def test_csv_columns_that_are_not_read_are_listed_once(tmp_path, capsys):
    for split in ("train", "test"):
        make_image(tmp_path / "in" / f"{split}.png")
        header = "filename,width,height,xmin,ymin,xmax,ymax,class,occluded,Area\n"
        (tmp_path / "in" / f"{split}.csv").write_text(f"{header}{split}.png,100,80,1,2,30,40,cat,1,7\n")
    *_, printed = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert printed.count("columns that are not read: occluded, Area\n") == 1


@pytest.mark.parametrize("row", ["a.png,1,2,30,40,{}\n", "a.png,100,80,{},1,2,30,40\n"])
@pytest.mark.parametrize("name", ["left", "bottom"])
def test_csv_rows_with_a_class_named_like_a_column_are_not_a_header(tmp_path, capsys, row, name):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "boxes.csv").write_text(row.format(name) + row.format("cat"))
    records, *_ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == [name, "cat"]


def test_csv_splits_and_missing_images(tmp_path, capsys):
    for split in ("train", "test"):
        make_image(tmp_path / "in" / f"{split}.png")
        (tmp_path / "in" / f"{split}_labels.csv").write_text(f"{split}.png,1,2,30,40,cat\n")
    records, *_ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {"train": "train", "test": "test"}
    with open(tmp_path / "in" / "test_labels.csv", "a") as rows:
        rows.write("gone.png,1,2,30,40,cat\nshort.png,1\n")
    message = failure(capsys, "csv", tmp_path / "in", "--out", tmp_path / "o")
    assert "gone: missing" in message and "test_labels.csv:3: has 2 columns" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b,c\n1,2,3\n", "the header a,b,c lacks columns"),
        (b"a.png,2,3\n", "cannot identify the columns"),
        (b"filename,class\na.png,cat\n", "xmin"),
        (b"filename,xmin,ymin,width,height,class\na.png,1,2,30,40,cat\n", "right edge: xmax, x_max"),
        (b"", "is empty"),
        (b'a.png,1,2,30,40,"cat\n', ":1: not CSV"),
        (b"a.png,1,2,30,40,\xff\xfe\n", "not UTF-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, capsys, content, expected):
    (tmp_path / "rows.csv").write_bytes(content)
    assert expected in failure(capsys, "csv", tmp_path / "rows.csv", "--out", tmp_path / "out")


def test_aabb_keeps_other_keys_of_objects_and_images(tmp_path, capsys):
    make_image(tmp_path / "in" / "deep" / "a.png")
    make_image(tmp_path / "in" / "b.png")
    entries = [
        {
            "image": "a.png",
            "image_path": "deep/a.png",
            "caption": "two things",
            "id": 4,
            "objects": [
                {
                    "class": "cup",
                    "bbox_aabb": [0.1, 0.25, 0.5, 0.75],
                    "obj_id": 3,
                    "is_unique": True,
                    "obj_position": "left",
                },
                {
                    "class": "jar",
                    "bbox_aabb": [0, 0, 1, 1],
                    "obj_id": 4,
                    "ignore": True,
                    "category": "glass",
                    "w": float("nan"),
                },
            ],
        },
        {"image": "b.png", "objects": []},
    ]
    (tmp_path / "in" / "list.json").write_text(json.dumps(entries))
    records, problems, _ = prepared(capsys, "aabb", tmp_path / "in", *TO_TEST, "--out", tmp_path / "out")
    assert records["a"]["objects"] == {
        "bbox": [[10, 20, 50, 60], [0, 0, 100, 80]],
        "category": ["cup", "jar"],
        "ignore": [False, True],
        "obj_id": [3, 4],
        "is_unique": [True, None],
        "obj_position": ["left", None],
        "source_category": [None, "glass"],
        "w": [None, "nan"],
    }
    assert (records["a"]["caption"], records["a"]["source_id"]) == ("two things", 4) and not problems
    assert records["b"]["objects"]["obj_id"] == [] and "caption" not in records["b"]


def test_aabb_faults_are_collected(tmp_path, capsys):
    entries = [
        3,
        {"image": "a.png"},
        {"image": "a.png", "objects": [{"bbox_aabb": [0, 0, 1, 1]}]},
        {"image": 5, "objects": []},
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    message = failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert "entry 0 needs `image`" in message and "entry 1 (a.png) needs the list `objects`" in message
    assert "objects[0] needs `class`" in message and "entry 3 needs `image`" in message
    (tmp_path / "list.json").write_text("{}")
    assert "needs a list" in failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")


def food_table(folder: Path, count: int, start: int = 0) -> datasets.Dataset:
    rows = []
    for i in range(start, start + count):
        path = make_image(folder / f"{i}.{'jpg' if i % 2 else 'webp'}", 100 + i, 80)
        boxes = [[0.25, 0.1, 0.75, 0.5]] * (i % 2)
        objects = {"bbox": boxes, "category_id": [0] * len(boxes), "category_name": ["nutrition-table"] * len(boxes)}
        image = {"bytes": path.read_bytes(), "path": None}
        row = {"image_id": f"food_{i}", "image": image, "width": 100 + i, "height": 80, "meta": {"barcode": str(i)}}
        rows.append(row | {"objects": objects})
    box = datasets.List(datasets.Value("float32"), length=4)
    objects = {
        "bbox": datasets.List(box),
        "category_id": datasets.List(datasets.Value("int64")),
        "category_name": datasets.List(datasets.Value("string")),
    }
    numbers = {"width": datasets.Value("int64"), "height": datasets.Value("int64")}
    columns = {"image_id": datasets.Value("string"), "image": datasets.Image(), **numbers}
    features = datasets.Features({**columns, "meta": {"barcode": datasets.Value("string")}, "objects": objects})
    return datasets.Dataset.from_list(rows, features=features)


def test_openfoodfacts_tables_of_every_kind_give_the_same_records(tmp_path, capsys):
    train, val = food_table(tmp_path / "p", 6), food_table(tmp_path / "p", 2, start=6)
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    train.to_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet")
    val.to_parquet(tmp_path / "parquet" / "data" / "val-00000-of-00001.parquet")
    datasets.DatasetDict(train=train, val=val).save_to_disk(tmp_path / "disk")
    outputs = []
    for kind in ("parquet", "disk"):
        out = tmp_path / kind / "out"
        records, problems, _ = prepared(capsys, "openfoodfacts", tmp_path / kind, "--out", out)
        assert not problems and read_info(out)["splits"].keys() == {"train", "validation"}
        for i in range(8):
            assert (out / records[f"food_{i}"]["image"]).read_bytes() == next(
                (tmp_path / "p").glob(f"{i}.*")
            ).read_bytes()
        outputs.append(records)
    assert outputs[0] == outputs[1]
    assert outputs[0]["food_5"]["objects"] == {
        "bbox": [[10.5, 20, 52.5, 60]],
        "category": ["nutrition-table"],
        "ignore": [False],
    }
    assert (
        outputs[0]["food_5"]["image"] == "images/food_5.jpg" and outputs[0]["food_6"]["image"] == "images/food_6.webp"
    )
    assert outputs[0]["food_6"]["split"] == "validation" and outputs[0]["food_6"]["meta"] == {"barcode": "6"}
    single = tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet"
    records, *_ = prepared(capsys, "openfoodfacts", single, "--out", tmp_path / "single")
    assert len(records) == 6 and len({record["split"] for record in records.values()}) == 3


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("objects", "x", "objects must be rows or parallel lists"),
        ("objects", {"bbox": None, "category_name": ["a"]}, "objects must be rows or parallel lists"),
        ("objects", [3], "objects must be rows or parallel lists"),
        ("objects", {"bbox": [0.1, 0.2], "category_name": ["a", "b"]}, "None of the 2 boxes"),
        ("image_id", "a" * 300, "longer than 255 bytes"),
        ("image_id", "a\0b", "NUL character"),
        ("image", {"bytes": b"RIFF\x10\0\0\0WEBPVP8 torn", "path": None}, "0: "),
        ("image", {"bytes": b"#define im_width {\n#define im_height 4\n", "path": None}, "0: "),
    ],
)
def test_openfoodfacts_rows_with_invalid_values(tmp_path, capsys, column, value, expected):
    data = make_image(tmp_path / "p.png").read_bytes()
    row = {"image_id": "0", "image": {"bytes": data, "path": None}, "objects": None} | {column: value}
    table = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "t.parquet")
    assert expected in failure(capsys, "openfoodfacts", tmp_path / "t.parquet", "--out", tmp_path / "out")


@pytest.mark.parametrize("name", ["dataset_dict.json", "train/state.json", "train/dataset_info.json"])
@pytest.mark.parametrize("content", ["", "[]", "null", '{"splits": [3]}', '{"_data_files": 3}', '{"features": 3}'])
def test_openfoodfacts_folders_with_a_corrupt_file(tmp_path, capsys, name, content):
    datasets.DatasetDict(train=food_table(tmp_path / "p", 2)).save_to_disk(tmp_path / "disk")
    (tmp_path / "disk" / name).write_text(content)
    if (name, content) == ("train/dataset_info.json", '{"_data_files": 3}'):
        assert len(prepared(capsys, "openfoodfacts", tmp_path / "disk", *TO_TEST, "--out", tmp_path / "out")[0]) == 2
    else:
        assert "not a table" in failure(capsys, "openfoodfacts", tmp_path / "disk", "--out", tmp_path / "out")


def test_openfoodfacts_tables_that_cannot_be_read(tmp_path, capsys):
    table = food_table(tmp_path / "p", 3)
    table.to_parquet(tmp_path / "t.parquet")
    corrupt = tmp_path / "corrupt.parquet"
    corrupt.write_bytes((tmp_path / "t.parquet").read_bytes()[:-500])
    assert "not a table" in failure(capsys, "openfoodfacts", corrupt, "--out", tmp_path / "out")
    table.remove_columns("objects").to_parquet(tmp_path / "t.parquet")
    assert "has no column objects" in failure(
        capsys, "openfoodfacts", tmp_path / "t.parquet", "--out", tmp_path / "out"
    )
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "openfoodfacts",
        "nobody/no-such-table",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no such file or folder" in done.stderr and "python -m data_prep nutrition" in done.stderr


def test_csv_captions_become_a_column(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    rows = 'a.png,1,2,30,40,cat,"old, rusty"\na.png,5,6,70,80,cat,\n'
    (tmp_path / "in" / "boxes.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class,caption\n{rows}")
    records, _, printed = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"]["caption"] == ["old, rusty", None]
    assert "not read" not in printed
