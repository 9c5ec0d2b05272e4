"""Small sources of every format, and the two ways to run data_prep on them: to a data set, or to an error."""

import json
import os
import zlib
from pathlib import Path

import pytest
from PIL import Image

from boxtune.data.records import read_info, read_records
from data_prep.__main__ import main


def picture(path: Path, width: int = 100, height: int = 80) -> Path:
    """A small picture whose bytes differ from those of every other path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (width, height), "grey")
    image.putpixel((0, 0), tuple(zlib.crc32(os.fsencode(path)).to_bytes(4)[:3]))
    image.save(path)
    return path


def prepared(capsys, *args) -> tuple[dict[str, dict], list[dict], str]:
    """Run the command: ({id: record with its split}, problems, what it printed)."""
    out = Path(args[args.index("--out") + 1])
    main([str(arg) for arg in args])
    printed = capsys.readouterr()
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    records = {
        record["id"]: record | {"split": split}
        for split in read_info(out)["splits"]
        for record in read_records(out, split)
    }
    return records, problems, printed.out + printed.err


def failure(capsys, *args) -> str:
    """Run the command, which must fail as a user error; the message. --out and its surroundings must be untouched."""
    out = Path(args[args.index("--out") + 1])
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    assert sorted(out.parent.rglob("*")) == before
    return capsys.readouterr().err


def coco(folder: Path, boxes_xywh: list, size=(100, 80), name: str = "annotations.json", **annotation) -> Path:
    """One picture for each list of boxes, category "cell"."""
    images, annotations = [], []
    for i, boxes in enumerate(boxes_xywh):
        picture(folder / f"p{i}.png", *size)
        images.append({"id": i, "file_name": f"p{i}.png", "width": size[0], "height": size[1]})
        annotations += [{"image_id": i, "category_id": 7, "bbox": box, **annotation} for box in boxes]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cell"}]}
    (folder / name).write_text(json.dumps(data))
    return folder


def voc_xml(filename: str, size: tuple[int, int], objects: list[tuple]) -> str:
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox><part><name>x</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, difficult, box in objects
    )
    size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{filename}</filename>{size_xml}{things}</annotation>"


def voc(root: Path, ids: list[str], lists: dict[str, list[str]] | None = None) -> Path:
    (root / "Annotations").mkdir(parents=True)
    for name in ids:
        picture(root / "JPEGImages" / f"{name}.jpg")
        xml = voc_xml(f"{name}.jpg", (100, 80), [("cat", 0, [1, 2, 30, 40])])
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    for name, members in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(members))
    return root


def yolo(root: Path, yaml: str, files: dict[str, str | None]) -> Path:
    """ImageFinder with the rows of their labels; None for no label file."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name, rows in files.items():
        picture(root / name)
        if rows is not None:
            label = root / Path(name.replace("images", "labels")).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(rows)
    return root


def kinds(problems: list[dict]) -> list[tuple]:
    return [(entry["id"], entry["kind"], entry["value"]) for entry in problems]
