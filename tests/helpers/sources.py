"""Small sources of several formats, and functions that run data_prep on them and expect a dataset or an error."""

import json
import os
import zlib
from pathlib import Path

import pytest
from PIL import Image

from boxtune.data.dataset import read_info, read_records
from data_prep.__main__ import main


def make_image(path: Path, width: int = 100, height: int = 80) -> Path:
    """Write a small image. Its bytes differ from those of images at other paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (width, height), "gray")
    image.putpixel((0, 0), tuple(zlib.crc32(os.fsencode(path)).to_bytes(4)[:3]))
    image.save(path)
    return path


def prepared(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[dict[str, dict], list[dict], str]:
    """Run the command, and return ({id: record with its split}, problems, printed text)."""
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


def failure(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run the command, which must fail with a user error and change nothing around --out, and return the message."""
    out = Path(args[args.index("--out") + 1])
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    assert sorted(out.parent.rglob("*")) == before
    return capsys.readouterr().err


def coco(
    folder: Path,
    boxes_xywh: list,
    size: tuple[int, int] = (100, 80),
    name: str = "annotations.json",
    **annotation: object,
) -> Path:
    """A COCO source with one image for each list of boxes, all of the category "cell"."""
    images, annotations = [], []
    for i, boxes in enumerate(boxes_xywh):
        make_image(folder / f"p{i}.png", *size)
        images.append({"id": i, "file_name": f"p{i}.png", "width": size[0], "height": size[1]})
        annotations += [{"image_id": i, "category_id": 7, "bbox": box, **annotation} for box in boxes]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cell"}]}
    (folder / name).write_text(json.dumps(data))
    return folder


def voc_xml(filename: str, size: tuple[int, int], objects: list[tuple]) -> str:
    """The XML of a VOC image; `objects` are (name, difficult, box)."""
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox><part><name>x</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, difficult, box in objects
    )
    size_xml = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{filename}</filename>{size_xml}{things}</annotation>"


def voc(root: Path, ids: list[str], lists: dict[str, list[str]] | None = None) -> Path:
    """A VOC source with an image and a cat for each id; `lists` is {image set: its ids}."""
    (root / "Annotations").mkdir(parents=True)
    for name in ids:
        make_image(root / "JPEGImages" / f"{name}.jpg")
        xml = voc_xml(f"{name}.jpg", (100, 80), [("cat", 0, [1, 2, 30, 40])])
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    for name, members in (lists or {}).items():
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(members))
    return root


def yolo(root: Path, yaml: str, files: dict[str, str | None]) -> Path:
    """A YOLO source: `files` is {image: rows of its label file, or None for no label file}."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for name, rows in files.items():
        make_image(root / name)
        if rows is not None:
            label = root / Path(name.replace("images", "labels")).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(rows)
    return root


def kinds(problems: list[dict]) -> list[tuple]:
    """(id, kind, value) of each problem."""
    return [(entry["id"], entry["kind"], entry["value"]) for entry in problems]
