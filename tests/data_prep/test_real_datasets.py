"""data_prep on real datasets, whose boxes are also counted independently of the readers."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from boxtune.data.dataset import read_info, read_records
from data_prep.__main__ import main


def prepared(source: Path, name: str, tmp_path: Path) -> tuple[dict[str, dict], list[dict], dict]:
    """({id: record}, problems, dataset.json)"""
    if not source.exists():
        pytest.skip(f"{source} does not exist")
    out = tmp_path / "out"
    main([name, str(source), "--out", str(out)])
    info = read_info(out)
    records = {
        record["id"]: record | {"split": split} for split in info["splits"] for record in read_records(out, split)
    }
    return records, [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()], info


def class_counts(records: dict[str, dict]) -> Counter:
    return Counter(name for record in records.values() for name in record["objects"]["category"])


def test_bccd(shared_data, tmp_path):
    source = shared_data / "bccd_voc"
    records, problems, info = prepared(source, "voc", tmp_path)
    boxes: dict[str, list] = {}
    for file in (source / "BCCD" / "Annotations").glob("*.xml"):
        text = re.sub(r"\s", "", file.read_text())
        found = re.findall(
            r"<name>(\w+)</name>.*?<xmin>(\d+)</xmin><ymin>(\d+)</ymin><xmax>(\d+)</xmax><ymax>(\d+)</ymax>", text
        )
        boxes[file.stem] = [(name, [int(value) for value in values]) for name, *values in found]
    usable = {key: [(n, b) for n, b in rows if b[0] < b[2] and b[1] < b[3]] for key, rows in boxes.items()}
    dropped = [(key, box) for key in sorted(boxes) for row in boxes[key] if row not in usable[key] for box in [row[1]]]

    assert len(boxes) == 364 and sum(map(len, boxes.values())) == 4888 and len(dropped) == 2
    assert [(entry["id"], entry["value"]) for entry in problems] == dropped
    assert {entry["kind"] for entry in problems} == {"bad_box"}
    for name, record in records.items():
        assert list(zip(record["objects"]["category"], record["objects"]["bbox"], strict=True)) == usable[name]
    assert records.keys() == boxes.keys() and info["classes"] == ["Platelets", "RBC", "WBC"]
    for split, list_name in (("train", "train"), ("validation", "val"), ("test", "test")):
        names = (source / "BCCD" / "ImageSets" / "Main" / f"{list_name}.txt").read_text().split()
        assert {name for name, record in records.items() if record["split"] == split} == set(names)


def test_publaynet(shared_data, tmp_path):
    source = shared_data / "publaynet_examples_coco"
    records, problems, info = prepared(source, "coco", tmp_path)
    data = json.loads((source / "samples.json").read_text())
    files = {image["id"]: image["file_name"] for image in data["images"]}
    assert sorted(f"{name}.jpg" for name in records) == sorted(files.values()) and len(records) == 20
    assert info["classes"] == [category["name"] for category in data["categories"]] and not problems
    names = {category["id"]: category["name"] for category in data["categories"]}
    assert class_counts(records) == Counter(names[entry["category_id"]] for entry in data["annotations"])
    assert class_counts(records).total() == 193
    position = Counter()
    for entry in data["annotations"]:
        record = records[files[entry["image_id"]].removesuffix(".jpg")]
        x, y, w, h = entry["bbox"]
        box = record["objects"]["bbox"][position[entry["image_id"]]]
        assert box == pytest.approx([x, y, x + w, y + h], abs=0.0006)
        position[entry["image_id"]] += 1


def test_aquarium(shared_data, tmp_path, capsys):
    source = shared_data / "aquarium_yolo"
    records, problems, info = prepared(source, "yolo", tmp_path)
    assert "names train: ../train/images, which does not exist" in capsys.readouterr().err
    assert len(records) == len(list((source / "valid" / "images").iterdir())) == 40 and not problems
    total = 0
    for file in (source / "valid" / "labels").iterdir():
        record = records[f"valid/images/{file.stem}"]
        rows = [line.split() for line in file.read_text().splitlines()]
        assert record["objects"]["category"] == [info["classes"][int(row[0])] for row in rows]
        for row, (x0, y0, x1, y1) in zip(rows, record["objects"]["bbox"], strict=True):
            center_and_size = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            sides = [record["width"], record["height"]] * 2
            assert center_and_size == pytest.approx(
                [float(v) * s for v, s in zip(row[1:], sides, strict=True)], abs=0.002
            )
        with Image.open(record["image"]) as image:
            assert image.size == (record["width"], record["height"])
        total += len(rows)
    assert total == class_counts(records).total() == 325 and set(info["splits"]) == {"train", "validation", "test"}


def test_marmot(shared_data, tmp_path):
    source = shared_data / "marmot_tables_csv"
    records, problems, info = prepared(source, "csv", tmp_path)
    with open(source / "train.csv", newline="") as text:
        rows = list(csv.reader(text))
    assert len(rows) == 71 and class_counts(records) == {"table": 71} and len(records) == 60 and not problems
    for name, record in records.items():
        expected = [[int(value) for value in row[1:5]] for row in rows if row[0] == f"{name}.png"]
        assert record["objects"]["bbox"] == expected
    assert info["classes"] == ["table"]
