"""data_prep: every source format, every kind of problem, splits, and that nothing is left behind by a mistake."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from boxtune.images import load_image
from boxtune.records import read_info, read_records
from data_prep.__main__ import main
from data_prep.prepare import ask
from data_prep.splits import divide, split_of

ROOT = Path(__file__).resolve().parent.parent


# ---- helpers -----------------------------------------------------------------------------------------------------------


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
    """Pictures with the rows of their labels; None for no label file."""
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


# ---- the record --------------------------------------------------------------------------------------------------------


def test_a_coco_file_becomes_the_records_of_the_contract(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[10, 20, 30, 40]], [[10.5, 20, 30.1234, 40]], []])
    records, problems, printed = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    first = records["p0"]
    assert {key: value for key, value in first.items() if key != "split"} == {
        "id": "p0",
        "image": str(source / "p0.png"),
        "width": 100,
        "height": 80,
        "objects": {"bbox": [[10, 20, 40, 60]], "category": ["cell"], "ignore": [False]},
        "messages": [
            {"role": "user", "content": "<image>Detect every cell in the image."},
            {"role": "assistant", "content": "<boxes>"},
        ],
    }
    lines = [line for path in (tmp_path / "out").glob("t*.jsonl") for line in path.read_text().splitlines()]
    line = next(line for line in lines if '"p0"' in line)
    assert '"bbox": [[10, 20, 40, 60]]' in line and list(json.loads(line)) == list(first)[:6]
    assert records["p1"]["objects"]["bbox"] == [[10.5, 20, 40.623, 60]]
    assert records["p2"]["objects"]["bbox"] == []
    info = read_info(tmp_path / "out")
    assert (info["name"], info["format"], info["classes"], info["problems"]) == ("out", "coco", ["cell"], {})
    assert sum(split["empty"] for split in info["splits"].values()) == 1 and not problems
    assert "cell" in printed and "problems: none" in printed and str(tmp_path / "out") in printed


def test_the_same_input_gives_the_same_bytes(tmp_path):
    source = coco(tmp_path / "in", [[[1, 2, 30, 40], [-1, 2, 30, 40]]] * 12)
    contents = []
    for seed in ("1", "2"):
        out = tmp_path / seed / "set"
        command = [sys.executable, "-m", "data_prep", "coco", str(source), "--out", str(out), "--questions", "mixed"]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) == 5


# ---- boxes -------------------------------------------------------------------------------------------------------------


def test_every_bad_box_is_dropped_and_listed_and_the_good_ones_stay(tmp_path, capsys):
    good = [[i, 0, 10, 10] for i in range(30)]
    bad = [
        [5, 5, 0, 10],
        [5, 5, 10, -1],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        ["a", 1, 2, 3],
        [None, 1, 2, 3],
        "box",
        [True, 1, 2, 3],
    ]
    endless = [[float("nan"), 1, 2, 3], [1, 1, float("inf"), 3], [10**400, 1, 2, 3], [5, 5, 0.0001, 9]]
    outside = [[200, 5, 10, 10]]
    source = coco(tmp_path / "in", [good + bad + endless + outside])
    records, problems, _ = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == [[i, 0, i + 10, 10] for i in range(30)]
    assert {entry["kind"] for entry in problems} == {"bad_box"}
    assert [entry["value"] for entry in problems][:8] == [*bad[:6], ["box"], bad[7]]
    assert [entry["value"] for entry in problems][8] == ["nan", 1, 2, 3] and len(problems) == len(
        bad + endless + outside
    )


def test_boxes_outside_are_clipped_and_listed(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[-1, 10, 20, 20], [90, 70, 11, 11], [0, 0, 100.0004, 80]]])
    records, problems, _ = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == [[0, 10, 19, 30], [90, 70, 100, 80], [0, 0, 100, 80]]
    assert kinds(problems) == [("p0", "clipped", [-1, 10, 20, 20]), ("p0", "clipped", [90, 70, 11, 11])]
    assert problems[0]["action"] == "clipped to [0, 10, 19, 30]"


def test_a_wrong_convention_stops_the_run_and_names_examples(tmp_path, capsys):
    rows = "".join(f"p{i}.png,60,50,20,20,cell\n" for i in range(4))  # x, y, width, height taken for corners
    for i in range(4):
        picture(tmp_path / "in" / f"p{i}.png")
    (tmp_path / "in" / "boxes.csv").write_text("filename,xmin,ymin,xmax,ymax,class\n" + rows)
    message = failure(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert "convention looks wrong: 4 of 4" in message and message.count("(100 × 80): cell [60, 50, 20, 20]") == 3
    records, problems, _ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out", "--allow-bad-boxes")
    assert len(records) == 4 and len(problems) == 4


@pytest.mark.parametrize(("wrong", "right", "stops"), [(3, 11, True), (3, 12, False), (2, 2, False), (10, 39, True)])
def test_the_convention_check_needs_three_boxes_and_more_than_a_fifth(tmp_path, capsys, wrong, right, stops):
    source = coco(tmp_path / "in", [[[90, 10, 50, 20]] * wrong + [[1, 1, 20, 20]] * right])
    command = ("coco", source, "--out", tmp_path / "out")
    if stops:
        assert f"{wrong} of {wrong + right} boxes" in failure(capsys, *command)
    else:
        assert len(prepared(capsys, *command)[1]) == wrong


def test_fractions_given_as_pixels_are_a_wrong_convention(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[0.1, 0.2, 0.5, 0.5]] * 3])
    assert "within one pixel" in failure(capsys, "coco", source, "--out", tmp_path / "out")


# ---- pictures ----------------------------------------------------------------------------------------------------------


def red_rectangle(path: Path, orientation: int, size=(60, 40), box=(10, 5, 30, 20)) -> None:
    """A white picture with a red rectangle, both in stored pixels."""
    image = Image.new("RGB", size, "white")
    image.paste((255, 0, 0), box)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def red_box(path: str) -> list[int]:
    """[x0, y0, x1, y1] of the red pixels of the upright picture."""
    pixels = np.asarray(load_image(path)).astype(int)
    rows, columns = np.nonzero(pixels[..., 1] < 128)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_boxes_of_the_stored_pixels_turn_with_the_picture(tmp_path, capsys, orientation, suffix):
    red_rectangle(tmp_path / f"a.{suffix}", orientation)
    (tmp_path / "a.xml").write_text(voc_xml(f"a.{suffix}", (60, 40), [("red", 0, [10, 5, 30, 20])]))
    records, problems, _ = prepared(capsys, "voc", tmp_path, "--out", tmp_path / "out")
    record = records["a"]
    assert (record["width"], record["height"]) == (40, 60) == load_image(record["image"]).size
    assert record["objects"]["bbox"] == [red_box(record["image"])] and not problems


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_of_the_upright_picture_stay(tmp_path, capsys, orientation):
    red_rectangle(tmp_path / "a.png", orientation)
    truth = [int(value) for value in red_box(tmp_path / "a.png")]
    upright = load_image(tmp_path / "a.png").size
    (tmp_path / "a.xml").write_text(voc_xml("a.png", upright, [("red", 0, truth)]))
    records, problems, _ = prepared(capsys, "voc", tmp_path, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [truth] and not problems


@pytest.mark.parametrize(("size", "fraction_box"), [({}, [0, 0, 0.5, 0.25]), ({"width": 60, "height": 40}, None)])
def test_fractions_are_of_the_stated_size_else_of_the_upright_picture(tmp_path, capsys, size, fraction_box):
    red_rectangle(tmp_path / "a.png", 6, box=(0, 20, 15, 40))
    truth = red_box(tmp_path / "a.png")
    box = fraction_box or [0, 0.5, 0.25, 1]
    entry = {"image": "a.png", **size, "objects": [{"class": "red", "bbox_aabb": box}]}
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    records, *_ = prepared(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [truth] and "source_width" not in records["a"]


def test_another_stated_size_is_listed_and_its_boxes_are_kept(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[10, 20, 30, 40]]])
    file = source / "annotations.json"
    file.write_text(file.read_text().replace('"width": 100, "height": 80', '"width": 200, "height": 160'))
    records, problems, printed = prepared(capsys, "coco", source, "--out", tmp_path / "out")
    assert records["p0"]["objects"]["bbox"] == [[10, 20, 40, 60]] and records["p0"]["width"] == 100
    assert [entry["kind"] for entry in problems] == ["size_mismatch"]
    assert "200 × 160" in problems[0]["value"] and "another size" in printed


def save_mode(mode: str, path: Path) -> None:
    rng = np.random.default_rng(0)
    if mode in {"I;16", "I", "F"}:
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        Image.fromarray(rng.integers(0, 60000, (30, 40)).astype(kind)).save(path)
    else:
        grey = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        (grey.convert("L").convert(mode) if mode == "LA" else grey.convert(mode)).save(path)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("I;16", "png"),
        ("I;16", "tif"),
        ("I", "tif"),
        ("F", "tif"),
        ("CMYK", "jpg"),
        ("L", "bmp"),
        ("P", "gif"),
        ("RGB", "webp"),
    ],
)
def test_pictures_of_any_mode_convert(tmp_path, capsys, mode, suffix):
    save_mode(mode, tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").mode == mode
    (tmp_path / "a.csv").write_text(f"a.{suffix},1,2,10,20,thing\n")
    records, problems, _ = prepared(capsys, "csv", tmp_path, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[1, 2, 10, 20]] and not problems


def bad_pictures(folder: Path) -> Path:
    """Two good pictures, and one missing, two torn, one that is text, and one that is far too long."""
    coco(folder, [[[1, 1, 20, 20]]] * 7)
    (folder / "p0.png").unlink()
    torn = folder / "p1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(torn)
    torn.write_bytes(torn.read_bytes()[:9000])
    assert Image.open(torn).size == (100, 80)  # opening alone does not notice
    torn_jpeg = folder / "p5.png"
    Image.effect_noise((100, 80), 90).save(torn_jpeg, format="JPEG")
    torn_jpeg.write_bytes(torn_jpeg.read_bytes()[:2000])
    (folder / "p2.png").write_text("no picture")
    Image.new("L", (402, 2)).save(folder / "p3.png")
    Image.new("L", (400, 2)).save(folder / "p4.png")
    return folder


def test_bad_pictures_are_all_named_and_nothing_is_written(tmp_path, capsys):
    message = failure(capsys, "coco", bad_pictures(tmp_path / "in"), "--out", tmp_path / "out")
    assert "5 problem(s)" in message and "--skip-bad-images" in message
    lines = message.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  - p0", "  - p1", "  - p2", "  - p3", "  - p5"]
    expected = ["missing", "torn", "not a picture", "200 times", "torn"]
    assert all(word in line for word, line in zip(expected, lines, strict=True)), message


def test_skip_bad_images_drops_and_lists_them(tmp_path, capsys):
    source = bad_pictures(tmp_path / "in")
    records, problems, _ = prepared(capsys, "coco", source, "--out", tmp_path / "out", "--skip-bad-images")
    assert sorted(records) == ["p4", "p6"]
    assert [(entry["id"], entry["kind"]) for entry in problems if entry["kind"] == "bad_image"] == [
        (f"p{i}", "bad_image") for i in (0, 1, 2, 3, 5)
    ]
    for i in (4, 6):
        (source / f"p{i}.png").unlink()
    assert "No image is left" in failure(capsys, "coco", source, "--out", tmp_path / "o", "--skip-bad-images")


def test_a_header_that_claims_a_giant_picture_is_no_way_to_exhaust_memory(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 20, 20]]] * 2)
    for name, data in (("p0.png", b"P6 60000 60000 255\n"), ("p1.png", giant_png())):
        (source / name).write_bytes(data + b"\0" * 100)
    assert failure(capsys, "coco", source, "--out", tmp_path / "out").count("claims 60000 × 60000") == 2


def giant_png() -> bytes:
    header = b"IHDR" + (60000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + header + zlib.crc32(header).to_bytes(4) + (9000).to_bytes(4) + b"IDAT"
    )


def test_copied_images_lie_in_the_data_set_under_their_ids(tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    names = {"a/one.png": "a/one", "two.png": "two", "../far.png": "__/far", str(tmp_path / "abs" / "x.png"): None}
    entries = []
    for name in names:
        picture(source / name)
        entries.append({"image": name, "objects": [{"class": "c", "bbox_aabb": [0, 0, 0.5, 0.5]}]})
    (source / "list.json").write_text(json.dumps(entries))
    records, *_ = prepared(capsys, "aabb", source / "list.json", "--out", tmp_path / "out" / "deep", "--copy-images")
    out = tmp_path / "out" / "deep"
    assert {"a/one", "two", "__/far"} < set(records) and len(records) == 4
    for record in records.values():
        assert (out / record["image"]).resolve().is_relative_to(out / "images")
        assert record["image"] == f"images/{record['id']}.png"
    assert (out / records["__/far"]["image"]).read_bytes() == (tmp_path / "far.png").read_bytes()
    assert {path.name for path in out.parent.iterdir()} == {"deep"}


def test_ids_keep_their_extension_or_split_only_where_they_would_collide(tmp_path, capsys):
    source = tmp_path / "in"
    for name in ("a.png", "a.jpg", "b.png"):
        picture(source / name)
    (source / "rows.csv").write_text("".join(f"{name},1,1,9,9,c\n" for name in ("a.png", "a.jpg", "b.png")))
    records, *_ = prepared(capsys, "csv", source, "--out", tmp_path / "out")
    assert sorted(records) == ["a.jpg", "a.png", "b"]
    for split in ("train", "val"):
        picture(tmp_path / "two" / split / "a.png")
        (tmp_path / "two" / f"{split}.csv").write_text("a.png,1,1,9,9,c\n")
    records, *_ = prepared(capsys, "csv", tmp_path / "two", "--out", tmp_path / "out2")
    assert {name: record["image"] for name, record in records.items()} == {
        "train/a": str(tmp_path / "two" / "train" / "a.png"),
        "validation/a": str(tmp_path / "two" / "val" / "a.png"),
    }


def test_one_picture_with_two_entries_is_an_error(tmp_path, capsys):
    picture(tmp_path / "a.png")
    names = ["a.png", "./a.png", "/elsewhere/a.png"]
    objects = [{"class": "c", "bbox_aabb": [0, 0, 1, 1]}]
    (tmp_path / "l.json").write_text(json.dumps([{"image": name, "objects": objects} for name in names]))
    message = failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert "a.png stands twice" in message and "elsewhere/a.png and a.png are one picture" in message


# ---- classes and questions ---------------------------------------------------------------------------------------------


def pets(folder: Path) -> Path:
    """Thirty pictures: cats in even ones, a dog in every third."""
    entries = []
    for i in range(30):
        picture(folder / f"{i:02d}.png")
        names = ["cat"] * (i % 2 == 0) + ["dog"] * (i % 3 == 0)
        entries.append(
            {"image": f"{i:02d}.png", "objects": [{"class": n, "bbox_aabb": [0, 0, 0.5, 0.5]} for n in names]}
        )
    entries[0]["objects"].append({"class": "Hund", "bbox_aabb": [0.5, 0.5, 1, 1]})
    (folder / "list.json").write_text(json.dumps(entries))
    return folder


def test_classes_filter_and_order_after_renaming(tmp_path, capsys):
    source = pets(tmp_path / "in")
    args = ["aabb", source, "--out", tmp_path / "out", "--rename", "Hund=dog,cat=Katze", "--classes", "dog"]
    records, problems, _ = prepared(capsys, *args)
    assert records["00"]["objects"]["category"] == ["dog", "dog"] and read_info(tmp_path / "out")["classes"] == ["dog"]
    assert len(records) == 30 and records["01"]["objects"]["bbox"] == []
    assert [entry["value"] for entry in problems if entry["kind"] == "other_class"] == ["Katze"] * 15 and len(
        problems
    ) == 15
    assert records["01"]["messages"][0]["content"] == "<image>Detect every dog in the image."
    message = failure(capsys, "aabb", source, "--out", tmp_path / "o", "--classes", "dog,cow", "--rename", "cta=x")
    assert "--classes: no class 'cow'; there are Hund, cat, dog" in message and "no class 'cta'" in message


def test_mixed_questions_ask_for_present_and_absent_classes_in_training_only(tmp_path, capsys):
    args = ("aabb", pets(tmp_path / "in"), "--rename", "Hund=dog")
    records, *_ = prepared(capsys, *args, "--out", tmp_path / "out", "--questions", "mixed")
    seen = {"all": 0, "present": 0, "absent": 0}
    for record in records.values():
        question, answer = [turn["content"] for turn in record["messages"]]
        if answer == "<boxes>":
            assert question == "<image>Detect every cat and dog in the image."
            seen["all"] += record["split"] == "train"
            continue
        name = answer.removeprefix("<boxes:").removesuffix(">")
        assert record["split"] == "train" and question == f"<image>Detect every {name} in the image."
        seen["present" if name in record["objects"]["category"] else "absent"] += 1
    assert all(seen.values()) and seen["all"] > seen["present"]
    plain, *_ = prepared(capsys, *args, "--out", tmp_path / "plain")
    assert {record["messages"][1]["content"] for record in plain.values()} == {"<boxes>"}


def test_a_class_whose_objects_are_all_ignored_is_neither_present_nor_absent():
    objects = {"bbox": [[0, 0, 1, 1]] * 2, "category": ["crowd", "cat"], "ignore": [True, False]}
    answers = {ask(f"x{i}", objects, ["crowd", "cat", "dog"], mixed=True)[1]["content"] for i in range(200)}
    assert answers == {"<boxes>", "<boxes:cat>", "<boxes:dog>"}


def test_class_names_that_no_answer_can_hold_are_errors(tmp_path, capsys):
    entries = []
    for i, name in enumerate(["ok", "<|box_start|>", "", " padded "]):
        picture(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "objects": [{"class": name, "bbox_aabb": [0, 0, 0.5, 0.5]}]})
    (tmp_path / "l.json").write_text(json.dumps(entries))
    message = failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert "'<|box_start|>' holds" in message and "(first in 1)" in message and "'' is empty (first in 2)" in message
    assert "padded" not in message
    (tmp_path / "l.json").write_text(json.dumps([{"image": "0.png", "objects": []}]))
    assert "nothing to ask for" in failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")


# ---- splits ------------------------------------------------------------------------------------------------------------


def test_an_undivided_source_is_divided_by_the_ids_alone():
    ids = [f"image_{i}" for i in range(2000)]
    divided, warnings = divide(dict.fromkeys(ids), None)
    counts = [list(divided.values()).count(split) for split in ("train", "validation", "test")]
    assert np.allclose(np.array(counts) / 2000, [0.8, 0.1, 0.1], atol=0.03) and not warnings
    fewer, _ = divide(dict.fromkeys(reversed(ids[:1000])), None)
    assert all(divided[name] == split for name, split in fewer.items())
    halves, _ = divide(dict.fromkeys(ids), [50, 50, 0])
    assert set(halves.values()) == {"train", "validation"} and 900 < list(halves.values()).count("train") < 1100


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 20])
def test_small_sets_have_every_split_as_far_as_images_go(count):
    divided, warnings = divide({f"x{i}": None for i in range(count)}, None)
    assert len(set(divided.values())) == min(count, 3) and len(warnings) == max(0, 3 - count)
    assert list(divided.values()).count("train") >= max(1, count // 2 - 1)


def test_the_sources_own_division_is_kept_unless_a_ratio_is_given():
    own = {f"x{i}": "train" if i % 2 else "validation" for i in range(100)}
    assert divide(own, None) == (own, [])
    again, warnings = divide(own, [80, 10, 10])
    assert set(again.values()) == {"train", "validation", "test"} and "replaces" in warnings[0]
    only, warnings = divide(dict.fromkeys(own, "validation"), None)
    assert set(only.values()) == {"train", "validation", "test"} and "only a validation split" in warnings[0]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train_labels", "train"),
        ("instances_val2017", "validation"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("trainval", "trainval"),
        ("test-00000-of-00001", "test"),
        ("train_val", None),
        ("minival", None),
        ("contest", None),
    ],
)
def test_split_names(name, split):
    assert split_of(name) == split


def test_voc_lists_trainval_only_where_its_parts_are_missing(tmp_path, capsys):
    ids = [f"i{n}" for n in range(6)]
    lists = {
        "train": ids[:2],
        "val": ids[2:4],
        "trainval": ids[:5],
        "test": [*ids[5:], "gone"],
        "cat_train": ["i0 1", "i2 -1"],
    }
    records, problems, printed = prepared(capsys, "voc", voc(tmp_path / "full", ids, lists), "--out", tmp_path / "o1")
    assert [records[name]["split"] for name in ids if name in records] == ["train"] * 2 + ["validation"] * 2 + ["test"]
    assert (
        kinds(problems) == [("gone", "no_annotation", "test.txt"), ("i4", "no_split", None)] and "left out" in printed
    )
    lists = {"trainval": ids[:4], "test": ids[4:]}
    records, _, printed = prepared(capsys, "voc", voc(tmp_path / "part", ids, lists), "--out", tmp_path / "o2")
    assert [records[name]["split"] for name in ids] == ["train"] * 4 + ["test"] * 2 and "no validation split" in printed


def test_a_named_but_absent_split_gives_a_warning(tmp_path, capsys):
    lists = {"train": ["a", "b"], "test": ["x", "y"]}
    source = voc(tmp_path / "in", ["a", "b", "c"], lists)
    records, _, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out")
    assert "test.txt names the test split, but none" in printed and sorted(records) == ["a", "b"]


def test_the_same_picture_in_two_splits_gives_a_warning(tmp_path, capsys):
    source = voc(tmp_path / "in", ["a", "b", "c"], {"train": ["a", "b"], "val": ["c"]})
    (source / "JPEGImages" / "c.jpg").write_bytes((source / "JPEGImages" / "a.jpg").read_bytes())
    *_, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out")
    assert "same picture stands in two splits, 1 time(s): a (train) = c (validation)" in printed
    (source / "JPEGImages" / "c.jpg").write_bytes((source / "JPEGImages" / "b.jpg").read_bytes() + b"\0")
    *_, printed = prepared(capsys, "voc", source, "--out", tmp_path / "out", "--overwrite")
    assert "same picture" not in printed


# ---- VOC ---------------------------------------------------------------------------------------------------------------


def test_voc_boxes_are_taken_as_written_and_difficult_ones_are_ignored(tmp_path, capsys):
    root = voc(tmp_path / "VOCdevkit" / "VOC2007", ["a"])
    objects = [("cat", 0, [1, 2, 100, 80]), ("dog", 1, ["3.5", 4, 50, 60]), ("dog", 0, ["?", 4, 50, 60])]
    (root / "Annotations" / "a.xml").write_text(voc_xml("a.jpg", (0, 0), objects))
    records, problems, _ = prepared(capsys, "voc", tmp_path / "VOCdevkit", "--out", tmp_path / "out")
    assert records["a"]["objects"] == {
        "bbox": [[1, 2, 100, 80], [3.5, 4, 50, 60]],
        "category": ["cat", "dog"],
        "ignore": [False, True],
    }
    assert kinds(problems) == [("a", "bad_box", ["?", 4, 50, 60])]
    voc(tmp_path / "VOCdevkit" / "VOC2012", ["b"])
    assert "several VOC data sets" in failure(capsys, "voc", tmp_path / "VOCdevkit", "--out", tmp_path / "o")


@pytest.mark.parametrize("filename", ["a", "a.png", "A.JPG", "", "other.jpg", "C:\\photos\\a.jpg"])
def test_voc_pictures_are_found_by_the_stem(tmp_path, capsys, filename):
    root = voc(tmp_path / "in", ["a", "other"])
    (root / "Annotations" / "a.xml").write_text(voc_xml(filename, (100, 80), [("cat", 0, [1, 2, 30, 40])]))
    records, *_ = prepared(capsys, "voc", root, "--out", tmp_path / "out")
    assert records["a"]["image"] == str(root / "JPEGImages" / "a.jpg")


def test_voc_pictures_without_xml_are_mentioned(tmp_path, capsys):
    root = voc(tmp_path / "in", ["a", "b"])
    (root / "Annotations" / "b.xml").unlink()
    records, _, printed = prepared(capsys, "voc", root, "--out", tmp_path / "out")
    assert list(records) == ["a"] and "1 picture(s) have no .xml file and are left out" in printed


def test_voc_xml_beside_pictures_in_split_folders(tmp_path, capsys):
    for split in ("train", "valid"):
        picture(tmp_path / "in" / split / "a.jpg")
        (tmp_path / "in" / split / "a.xml").write_text(voc_xml("a.jpg", (100, 80), [("cat", 0, [1, 2, 30, 40])]))
    records, *_ = prepared(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {"train/a": "train", "valid/a": "validation"}


def test_voc_faults_are_collected(tmp_path, capsys):
    root = voc(tmp_path / "in", ["a", "b", "c"])
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    (root / "Annotations" / "b.xml").write_text("<html/>")
    (root / "JPEGImages" / "c.jpg").unlink()
    message = failure(capsys, "voc", root, "--out", tmp_path / "out")
    assert (
        "a.xml: not XML: no element found: line 1" in message
        and "begins with <html>" in message
        and "c: missing" in message
    )


# ---- COCO --------------------------------------------------------------------------------------------------------------


def test_coco_splits_by_file_with_pictures_in_folders_of_their_own(tmp_path, capsys):
    root = tmp_path / "in"
    for split, box in (("train2017", [1, 2, 3, 4]), ("val2017", [5, 6, 7, 8])):
        picture(root / "images" / split / "0001.jpg")
        picture(root / "0001.jpg")  # not of either split
        data = {
            "images": [{"id": 9, "file_name": "0001.jpg", "width": 100, "height": 80}],
            "annotations": [{"image_id": 9, "category_id": 90, "bbox": box, "iscrowd": 1}],
            "categories": [{"id": 90, "name": "cup"}, {"id": 3, "name": "car"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(data))
        (root / "annotations" / f"captions_{split}.json").write_text("{}")
    records, _, printed = prepared(capsys, "coco", root, "--out", tmp_path / "out")
    assert records["train/0001"]["image"] == str(root / "images" / "train2017" / "0001.jpg")
    assert records["validation/0001"]["objects"] == {"bbox": [[5, 6, 12, 14]], "category": ["cup"], "ignore": [True]}
    assert records["validation/0001"]["image"] == str(root / "images" / "val2017" / "0001.jpg")
    assert read_info(tmp_path / "out")["classes"] == ["cup", "car"] and "no object of class car" in printed


def test_coco_in_roboflow_folders_leaves_out_the_grouping_class(tmp_path, capsys):
    for split in ("train", "valid", "test"):
        coco(tmp_path / "in" / split, [[[1, 1, 20, 20]]], name="_annotations.coco.json")
        file = tmp_path / "in" / split / "_annotations.coco.json"
        data = json.loads(file.read_text())
        data["categories"] = [
            {"id": 0, "name": "cells", "supercategory": "none"},
            {"id": 7, "name": "cell", "supercategory": "cells"},
        ]
        file.write_text(json.dumps(data))
    records, _, printed = prepared(capsys, "coco", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {
        "train/p0": "train",
        "valid/p0": "validation",
        "test/p0": "test",
    }
    assert read_info(tmp_path / "out")["classes"] == ["cell"] and "only groups the others" in printed


def test_coco_images_may_lie_elsewhere_and_in_folders(tmp_path, capsys):
    picture(tmp_path / "store" / "x" / "1.png")
    data = {"images": [{"id": "s", "file_name": "x/1.png"}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "one.json").write_text("\ufeff" + json.dumps(data), encoding="utf-8")
    records, *_ = prepared(
        capsys, "coco", tmp_path / "one.json", "--images", tmp_path / "store", "--out", tmp_path / "out"
    )
    assert list(records) == ["x/1"] and records["x/1"]["image"] == str(tmp_path / "store" / "x" / "1.png")
    message = failure(capsys, "coco", tmp_path / "one.json", "--images", tmp_path / "none", "--out", tmp_path / "o")
    assert "is no folder" in message


def test_coco_faults_are_collected(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 2, 2]]])
    data = json.loads((source / "annotations.json").read_text())
    data["images"] += [{"id": 0, "file_name": "p0.png"}, {"id": 5}]
    data["annotations"] += [{"image_id": 99, "category_id": 7}, {"image_id": 0, "category_id": 1}, {"image_id": [0]}, 3]
    data["categories"] += [{"id": 8}]
    (source / "annotations.json").write_text(json.dumps(data))
    message = failure(capsys, "coco", source, "--out", tmp_path / "out")
    for part in (
        "images[1]: id 0 stands twice",
        "images[2] needs",
        "annotations[1]: image_id 99",
        "annotations[2]: category_id 1",
    ):
        assert part in message
    assert "annotations[3] needs" in message and "annotations[4] needs" in message and "categories[1] needs" in message
    assert "7 problem(s)" in message


# ---- YOLO --------------------------------------------------------------------------------------------------------------


def test_yolo_rows_of_every_kind(tmp_path, capsys):
    rows = "0 0.5 0.5 0.2 0.5\n1 0.5 0.5 0.2 0.5 0.93\n\n0 0.1 0.1 0.3 0.1 0.2 0.4\n1 0.5 0.5\n0 0.5 0.5 nan 0.1\n"
    files = {"images/a.jpg": rows, "images/b.jpg": None, "images/c.jpg": ""}
    source = yolo(tmp_path / "in", "names: {1: dog, 0: cat}\ntrain: images\n", files)
    (source / "labels" / "classes.txt").write_text("cat\ndog\n")
    records, problems, _ = prepared(capsys, "yolo", source, "--out", tmp_path / "out")
    assert records["images/a"]["objects"]["bbox"] == [[40, 20, 60, 60], [40, 20, 60, 60], [10, 8, 30, 32]]
    assert records["images/a"]["objects"]["category"] == ["cat", "dog", "cat"]
    assert records["images/b"]["objects"]["bbox"] == records["images/c"]["objects"]["bbox"] == []
    assert [entry["value"] for entry in problems] == [[0.5, 0.5], [0.5, 0.5, "nan", 0.1]]
    assert read_info(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_yolo_paths_as_roboflow_and_ultralytics_write_them(tmp_path, capsys):
    box = "0 0.5 0.5 0.2 0.5"
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\n"
    files = {"train/images/a.jpg": box, "valid/images/b.jpg": box}
    records, _, printed = prepared(capsys, "yolo", yolo(tmp_path / "r", yaml, files), "--out", tmp_path / "o1")
    assert {name: record["split"] for name, record in records.items()} == {
        "train/images/a": "train",
        "valid/images/b": "validation",
    }
    assert "names test: ../test/images, which is absent" in printed
    yaml = "path: data\ntrain: [images/one, images/two]\nval: val.txt\ntest:\nnames: [cat]\n"
    files = {f"data/images/{name}.jpg": box for name in ("one/a", "two/b", "three/c")}
    source = yolo(tmp_path / "u", yaml, files)
    (source / "data" / "val.txt").write_text("./images/three/c.jpg\n")
    records, *_ = prepared(capsys, "yolo", source / "data.yaml", "--out", tmp_path / "o2")
    assert {name: record["split"] for name, record in records.items()} == {
        "data/images/one/a": "train",
        "data/images/two/b": "train",
        "data/images/three/c": "validation",
    }
    assert all(len(record["objects"]["bbox"]) == 1 for record in records.values())


def test_yolo_folders_without_yaml_and_labels_beside_the_pictures(tmp_path, capsys):
    for split in ("train", "val"):
        picture(tmp_path / "in" / split / "a.jpg")
        (tmp_path / "in" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.5")
    assert "names no classes" in failure(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    (tmp_path / "in" / "classes.txt").write_text("cat\n")
    records, *_ = prepared(capsys, "yolo", tmp_path / "in", "--out", tmp_path / "out")
    assert {record["split"] for record in records.values()} == {"train", "validation"}
    assert records["val/a"]["objects"]["bbox"] == [[40, 20, 60, 60]]


def test_yolo_faults(tmp_path, capsys):
    files = {"images/a.jpg": "2 0.5 0.5 0.2 0.5\nx 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.2 0.2"}
    source = yolo(tmp_path / "in", "train: images\nnames: [cat, dog]\n", files)
    (source / "labels" / "gone.txt").write_text("0 0.5 0.5 0.2 0.5")
    message = failure(capsys, "yolo", source, "--out", tmp_path / "out")
    assert "a.txt:1: class 2, but the names run from 0 to 1" in message and "a.txt:2: class 'x'" in message
    assert "images/gone: missing" in message
    (source / "data.yaml").write_text("names: [cat\n")
    assert "not YAML" in failure(capsys, "yolo", source, "--out", tmp_path / "out")
    (source / "data.yaml").write_text("train: images\n")
    assert "needs `names`" in failure(capsys, "yolo", source, "--out", tmp_path / "out")
    (source / "data.yaml").write_text("train: elsewhere\nnames: [cat]\n")
    assert "found no picture" in failure(capsys, "yolo", source, "--out", tmp_path / "out")


# ---- CSV ---------------------------------------------------------------------------------------------------------------


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
        picture(tmp_path / "in" / "images" / name)
    (tmp_path / "in" / "boxes.csv").write_text(text)
    records, problems, _ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    first, second = (records[name] for name in sorted(records))
    assert first["objects"]["bbox"] == [[1, 2, 30, 40], [5, 6, 70.5, 80]] and second["objects"]["bbox"] == []
    assert first["objects"]["category"] == ["cat", "dog"] and not problems
    assert first["image"] == str(tmp_path / "in" / "images" / "a.png")


def test_csv_splits_and_missing_pictures(tmp_path, capsys):
    for split in ("train", "test"):
        picture(tmp_path / "in" / f"{split}.png")
        (tmp_path / "in" / f"{split}_labels.csv").write_text(f"{split}.png,1,2,30,40,cat\n")
    records, *_ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["split"] for name, record in records.items()} == {"train": "train", "test": "test"}
    with open(tmp_path / "in" / "test_labels.csv", "a") as rows:
        rows.write("gone.png,1,2,30,40,cat\nshort.png,1\n")
    message = failure(capsys, "csv", tmp_path / "in", "--out", tmp_path / "o")
    assert "gone: missing" in message and "test_labels.csv:3: 2 columns" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b,c\n1,2,3\n", "cannot tell the columns"),
        (b"filename,class\na.png,cat\n", "xmin"),
        (b"", "is empty"),
        (b'a.png,1,2,30,40,"cat\n', ":1: not CSV"),
        (b"a.png,1,2,30,40,\xff\xfe\n", "not UTF-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path, capsys, content, expected):
    (tmp_path / "rows.csv").write_bytes(content)
    assert expected in failure(capsys, "csv", tmp_path / "rows.csv", "--out", tmp_path / "out")


# ---- AABB --------------------------------------------------------------------------------------------------------------


def test_aabb_keeps_what_else_objects_and_pictures_have(tmp_path, capsys):
    picture(tmp_path / "in" / "deep" / "a.png")
    picture(tmp_path / "in" / "b.png")
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
    records, problems, _ = prepared(capsys, "aabb", tmp_path / "in", "--out", tmp_path / "out")
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


# ---- Open Food Facts ---------------------------------------------------------------------------------------------------


def food_table(folder: Path, count: int, start: int = 0) -> datasets.Dataset:
    rows = []
    for i in range(start, start + count):
        path = picture(folder / f"{i}.{'jpg' if i % 2 else 'webp'}", 100 + i, 80)
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


def test_openfoodfacts_tables_that_cannot_be_read(tmp_path, capsys):
    table = food_table(tmp_path / "p", 3)
    table.to_parquet(tmp_path / "t.parquet")
    torn = tmp_path / "torn.parquet"
    torn.write_bytes((tmp_path / "t.parquet").read_bytes()[:-500])
    assert "not a table" in failure(capsys, "openfoodfacts", torn, "--out", tmp_path / "out")
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


# ---- the command -------------------------------------------------------------------------------------------------------


def test_an_existing_data_set_is_replaced_only_with_overwrite(tmp_path, capsys):
    out = tmp_path / "sets" / "out"
    prepared(capsys, "coco", coco(tmp_path / "a", [[[1, 1, 5, 5]]]), "--out", out, "--copy-images")
    more = coco(tmp_path / "b", [[[1, 1, 5, 5]]] * 3)
    assert "--overwrite" in failure(capsys, "coco", more, "--out", out)
    (more / "p2.png").unlink()
    failure(capsys, "coco", more, "--out", out, "--overwrite")
    assert len(list((out / "images").iterdir())) == 1
    (out / "images" / "p0.png").touch()
    assert "lies in" in failure(capsys, "coco", out / "images", "--out", out, "--overwrite")
    records, *_ = prepared(capsys, "coco", more, "--out", out, "--overwrite", "--skip-bad-images")
    assert len(records) == 2 and not (out / "images").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "other than a prepared data set" in failure(capsys, "coco", more, "--out", tmp_path / "mine", "--overwrite")


def test_a_data_set_inside_its_own_source_is_not_read_again(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 5, 5]]] * 2)
    for _ in range(2):
        args = ("coco", source, "--out", source / "out", "--copy-images", "--overwrite")
        assert len(prepared(capsys, *args)[0]) == 2
    source = yolo(tmp_path / "y", "train: .\nnames: [cat]\n", {"a.jpg": "0 0.5 0.5 0.2 0.5"})
    for _ in range(2):
        args = ("yolo", source, "--out", source / "out", "--copy-images", "--overwrite")
        assert list(prepared(capsys, *args)[0]) == ["a"]


def test_a_file_name_that_is_no_unicode_is_a_user_error(tmp_path, capsys):
    name = os.fsdecode(b"\xff.jpg")
    source = yolo(tmp_path / "in", "train: images\nnames: [cat]\n", {f"images/{name}": "0 0.5 0.5 0.2 0.5"})
    assert "no Unicode text" in failure(capsys, "yolo", source, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"images": [', "line 1 column"), ("[1, 2]", "needs an object with the lists"), ("[" * 100000, "not JSON")],
)
def test_the_command_ends_with_2_and_no_traceback_on_torn_json(tmp_path, text, expected):
    (tmp_path / "a.json").write_text(text)
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "coco",
        str(tmp_path / "a.json"),
        "--out",
        str(tmp_path / "new" / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(tmp_path / "a.json") in done.stderr and expected in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["voc", "coco", "yolo", "csv", "aabb"])
def test_sources_that_are_absent_or_empty(tmp_path, capsys, name):
    assert "does not exist" in failure(capsys, name, tmp_path / "none", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in failure(capsys, name, tmp_path / "empty", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [["--split-ratio", "80,20"], ["--split-ratio", "a,b,c"], ["--rename", "ab"], ["--split-ratio", "0,0,0"]],
)
def test_arguments_that_make_no_sense(tmp_path, arguments):
    with pytest.raises(SystemExit) as stop:
        main(["coco", str(tmp_path), "--out", str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2


def test_converting_loads_neither_torch_nor_datasets(tmp_path):
    source = coco(tmp_path / "in", [[[1, 1, 5, 5]]])
    code = (
        "import sys; from data_prep.__main__ import main; main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    command = [sys.executable, "-c", code, "coco", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
