"""data_prep: LabelMe's web tool, CVAT for video, Supervisely, Create ML and WIDER FACE."""

import base64
import io
import json
import zlib

import pytest
from PIL import Image

from tests.helpers.sources import failure, kinds, make_image, prepared

TO_TEST = ("--split-ratio", "0,0,100")


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- LabelMe 3.0 -----------------------------------------------------------------------------------------------------


def labelme_object(name: str, points: list, more: str = "<deleted>0</deleted>") -> str:
    corners = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
    return f"<object><name>{name}</name>{more}<polygon><username>anonymous</username>{corners}</polygon></object>"


def labelme_xml(filename: str, *objects: str) -> str:
    source = "<source><sourceImage>s</sourceImage><sourceAnnotation>LabelMe Webtool</sourceAnnotation></source>"
    size = "<imagesize><nrows>80</nrows><ncols>100</ncols></imagesize>"
    return f"<annotation><filename>{filename}</filename><folder>f</folder>{source}{size}{''.join(objects)}</annotation>"


def test_labelme_xml(tmp_path, capsys):
    root = tmp_path / "in"
    segment = (
        "<segm><box><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></box><mask>a_mask_0.png</mask></segm>"
    )
    objects = [
        labelme_object("car\n", [(10, 20), (30, 25), (15, 60)]),
        labelme_object("tree", [(1, 1), (5, 5)], "<deleted>1</deleted>"),
        f"<object><name>sky</name><deleted>0</deleted>{segment}</object>",
        "<object><name>lost</name><deleted>0</deleted></object>",
        labelme_object("car", [(1, "x"), (5, 5)]),
    ]
    for folder, things in (("street", objects), ("park", objects[:1])):  # the same name in two folders
        make_image(root / "Images" / folder / "a.jpg")
        write(root / "Annotations" / folder / "a.xml", labelme_xml("a.jpg", *things))
    make_image(root / "Images" / "park" / "b.jpg")
    for name in ("labelme_xml", "auto"):
        records, problems, _ = prepared(capsys, name, root, *TO_TEST, "--out", tmp_path / name)
        assert {item_id: record["image"] for item_id, record in records.items()} == {
            f"Images/{folder}/a": str(root / "Images" / folder / "a.jpg") for folder in ("street", "park")
        }
        objects_of = records["Images/street/a"]["objects"]
        assert objects_of["bbox"] == [[10, 20, 30, 60], [1, 2, 9, 8]] and objects_of["category"] == ["car", "sky"]
        assert [(item_id, kind) for item_id, kind, _ in kinds(problems)] == [
            ("Images/park/b", "no_annotation"),
            ("Images/street/a", "no_box"),
            ("Images/street/a", "bad_box"),
        ]


def test_labelme_xml_is_not_voc(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.jpg")
    write(tmp_path / "in" / "a.xml", labelme_xml("a.jpg", labelme_object("car", [(1, 2), (30, 40)])))
    message = failure(capsys, "voc", tmp_path / "in", "--out", tmp_path / "out")
    assert "a.xml: XML of the LabelMe web tool, not VOC. Use the format labelme_xml" in message


# ---- CVAT for video --------------------------------------------------------------------------------------------------


def track(label: str, *shapes: str, number: int = 0) -> str:
    return f'<track id="{number}" label="{label}" source="manual">{"".join(shapes)}</track>'


def box(frame: object, outside: int, *edges: int) -> str:
    values = " ".join(f'{key}="{edge}"' for key, edge in zip(("xtl", "ytl", "xbr", "ybr"), edges, strict=True))
    return f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" {values}><attribute name="a">b</attribute></box>'


def video(*tracks: str, stop: int = 3, task: str = "") -> str:
    labels = "<labels><label><name>dog</name></label><label><name>car</name></label></labels>"
    frames = f"<start_frame>0</start_frame><stop_frame>{stop}</stop_frame>{task}"
    size = "<original_size><width>100</width><height>80</height></original_size>"
    meta = f"<meta><task><id>1</id>{frames}{labels}{size}</task></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(tracks)}</annotations>"


def test_cvat_for_video(tmp_path, capsys):
    """An object counts in the frames in which it is not outside; a frame without objects is an empty image."""
    root = tmp_path / "in"
    tracks = (
        track("car", box(0, 0, 1, 2, 30, 40), box(1, 0, 2, 3, 31, 41), box(2, 1, 3, 4, 32, 42)),
        track("dog", '<polygon frame="1" outside="0" points="10,20;30,20;20,60"/>', '<points frame="1" points="1,1"/>'),
        track("man", '<skeleton frame="1" points="1,1"/>', track("eye", '<points frame="1" points="1,1"/>')),
        track("car", box(3, 0, 5, 6, 7, 8), box(4, 1, 5, 6, 7, 8)),  # outside after the last frame
    )
    write(root / "annotations.xml", video(*tracks))
    for number in range(4):
        make_image(root / "images" / f"frame_{number:06d}.PNG")
    for name in ("cvat", "auto"):
        records, problems, printed = prepared(capsys, name, root, *TO_TEST, "--out", tmp_path / name)
        assert {item_id: record["objects"]["bbox"] for item_id, record in records.items()} == {
            "frame_000000": [[1, 2, 30, 40]],
            "frame_000001": [[2, 3, 31, 41], [10, 20, 30, 60]],
            "frame_000002": [],
            "frame_000003": [[5, 6, 7, 8]],
        }
        assert records["frame_000001"]["objects"]["category"] == ["car", "dog"]
        assert records["frame_000000"]["objects"]["a"] == ["b"]
        assert json.loads((tmp_path / name / "dataset.json").read_text())["classes"] == ["dog", "car"]
        assert [kind for _, kind, _ in kinds(problems)] == ["no_box", "no_box"]
        assert "neighboring frames of a video look alike" in printed and "leaves out frames" not in printed
    (root / "images" / "frame_000002.PNG").unlink()  # not annotated, so not needed
    (root / "images" / "frame_000003.PNG").unlink()
    message = failure(capsys, "cvat", root, "--out", tmp_path / "out")
    assert "frame_000003: missing" in message and "frame_000002" not in message


@pytest.mark.parametrize(("task", "gaps"), [("", True), ("<frame_filter>step=2</frame_filter>", False)])
def test_tracks_that_leave_out_frames_are_a_warning(tmp_path, capsys, task, gaps):
    root = tmp_path / "in"
    write(root / "train.xml", video(track("car", box(0, 0, 1, 2, 30, 40), box(2, 0, 2, 3, 31, 41)), stop=2, task=task))
    for number in (0, 1, 2):
        make_image(root / "train" / f"frame_{number:06d}.png")
    records, _, printed = prepared(capsys, "cvat", root, *TO_TEST, "--out", tmp_path / "out")
    assert len(records) == (3 if gaps else 2)
    assert ("1 time(s), a track leaves out frames without being outside" in printed) == gaps
    assert "look alike" not in printed  # the file names its split


def test_cvat_videos_that_cannot_be_read(tmp_path, capsys):
    file = write(tmp_path / "annotations.xml", video(track("car", box("x", 0, 1, 2, 3, 4), box(-1, 0, 1, 2, 3, 4))))
    message = failure(capsys, "cvat", file, "--out", tmp_path / "out")
    assert "track 0: frame must be a number, got 'x'" in message and "got '-1'" in message
    tasks = "<task><id>1</id></task><task><id>2</id></task>"
    file.write_text(f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta></annotations>")
    assert "has several videos" in failure(capsys, "cvat", file, "--out", tmp_path / "out")


# ---- Supervisely -----------------------------------------------------------------------------------------------------


def bitmap(mode: str) -> str:
    """A mask of 10 × 8 pixels, of which those from (2, 1) to (6, 4) are set, as Supervisely and others encode it."""
    mask = Image.new("L", (10, 8))
    mask.paste(255, (2, 1, 6, 4))
    if mode == "RGBA":
        mask = Image.merge("RGBA", (mask, mask, mask, mask))
    if mode == "P":
        mask = mask.point(lambda value: value and 1).convert("P")
        mask.putpalette([9, 9, 9, 255, 255, 255])  # transparent, but not black
    content = io.BytesIO()
    mask.save(content, "PNG", **({"transparency": 0} if mode == "P" else {}))
    return base64.b64encode(zlib.compress(content.getvalue())).decode()


def figure(kind: str, *points: list, **more) -> dict:
    return {"classTitle": "lemon", "geometryType": kind, "points": {"exterior": list(points), "interior": []}, **more}


def supervisely(root, figures: list, image: str = "a.jpg", annotation: str = "a.jpg.json", dataset: str = "ds1"):
    make_image(root / dataset / "img" / image)
    content = {"description": "", "tags": [], "size": {"height": 80, "width": 100}, "objects": figures}
    write(root / dataset / "ann" / annotation, json.dumps(content))


def test_supervisely(tmp_path, capsys):
    root = tmp_path / "in"
    shapes = [("kiwi", "polygon"), ("lemon", "bitmap"), ("dot", "point")]
    classes = [{"title": title, "shape": shape, "color": "#FF0000"} for title, shape in shapes]
    write(root / "meta.json", json.dumps({"classes": classes, "tags": []}))
    figures = [
        figure("rectangle", [30, 60], [10, 20]),
        figure("polygon", [5, 5], [9, 7], [6, 30]),
        *(
            {"classTitle": "lemon", "geometryType": "bitmap", "bitmap": {"data": bitmap(mode), "origin": [20, 30]}}
            for mode in ("L", "RGBA", "P")
        ),
        figure("point", [1, 2]),
        {"classTitle": "lemon", "geometryType": "bitmap", "bitmap": {"data": "eJw=", "origin": [20, 30]}},
        figure("rectangle", [1, 2]),
    ]
    supervisely(root, figures)
    supervisely(root, [figure("rectangle", [1, 2], [30, 40])], image="a.png", annotation="a.png.json")
    supervisely(root, [], dataset="ds2")
    for name in ("supervisely", "auto"):
        records, problems, _ = prepared(capsys, name, root, *TO_TEST, "--out", tmp_path / name)
        assert records["ds1/img/a.jpg"]["objects"]["bbox"] == [[10, 20, 30, 60], [5, 5, 9, 30]] + [[22, 31, 26, 34]] * 3
        assert records["ds1/img/a.png"]["objects"]["bbox"] == [[1, 2, 30, 40]]
        assert records["ds2/img/a"]["objects"]["bbox"] == [] and len(records) == 3
        assert json.loads((tmp_path / name / "dataset.json").read_text())["classes"] == ["kiwi", "lemon"]
        assert sorted(kind for _, kind, _ in kinds(problems)) == ["bad_box", "bad_box", "no_box"]


# ---- Create ML -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_key", "list_key"), [("image", "annotations"), ("imagefilename", "annotation")])
@pytest.mark.parametrize("unit", [1, 100])
def test_createml(tmp_path, capsys, image_key, list_key, unit):
    """Coordinates are those of the center, in pixels or in fractions."""
    for split in ("train", "valid"):
        sides = {"x": 20 / unit, "y": 30 / unit, "width": 20 / unit, "height": 30 / unit}
        if unit == 100:  # the image has 100 × 80 pixels
            sides |= {"y": 30 / 80, "height": 30 / 80}
        things = [{"label": "Waffle", "coordinates": sides}]
        entries = [{image_key: "a.png", list_key: things}, {image_key: "b.png", list_key: []}]
        write(tmp_path / "in" / split / "_annotations.createml.json", json.dumps(entries))
        make_image(tmp_path / "in" / split / "a.png"), make_image(tmp_path / "in" / split / "b.png")
    for name in ("createml", "auto"):
        records, problems, _ = prepared(capsys, name, tmp_path / "in", "--out", tmp_path / name)
        assert records["train/a"]["objects"]["bbox"] == [[10, 15, 30, 45]] and not problems
        assert records["train/a"]["objects"]["category"] == ["Waffle"]
        assert records["valid/b"]["split"] == "validation" and records["valid/b"]["objects"]["bbox"] == []


def test_createml_faults_are_collected(tmp_path, capsys):
    entries = [
        {"image": 7},
        {"image": "a.png"},
        {"image": "a.png", "annotations": [{"label": "x", "coordinates": [1, 2, 3, 4]}]},
        "x",
    ]
    file = write(tmp_path / "in.json", json.dumps(entries))
    message = failure(capsys, "createml", file, "--out", tmp_path / "out")
    assert "entry 0 needs `image`" in message and "entry 3 needs `image`" in message
    assert "entry 1 (a.png) needs the list `annotations`" in message
    assert "entry 2 (a.png): annotations[0] needs label and coordinates" in message


# ---- WIDER FACE ------------------------------------------------------------------------------------------------------

FACES = """0--Parade/0_Parade_marchingband_1_849.jpg
2
10 20 20 30 0 1 0 0 2 1
50 40 20 20 2 0 0 1 0 0
1--Handshaking/1_Handshaking_Handshaking_1_1.jpg
0
0 0 0 0 0 0 0 0 0 0
2--Demonstration/2_x.jpg
0
3--Riot/3_x.jpg
1
1 2 3 4
"""


@pytest.mark.parametrize("source", ["", "wider_face_split", "wider_face_split/wider_face_train_bbx_gt.txt"])
def test_wider_face(tmp_path, capsys, source):
    root = tmp_path / "in"
    for split, text in (("train", FACES), ("val", FACES.split("1--")[0])):
        write(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", text)
        for line in text.splitlines():
            if "--" in line:
                make_image(root / f"WIDER_{split}" / "images" / line)
    write(root / "wider_face_split" / "wider_face_test_filelist.txt", "0--Parade/x.jpg\n0--Parade/y.jpg\n")
    write(root / "wider_face_split" / "readme.txt", "Attached the mappings\n")
    for name in ("wider", "auto"):
        records, problems, _ = prepared(capsys, name, root / source, *TO_TEST, "--out", tmp_path / name)
        record = records[
            "0--Parade/0_Parade_marchingband_1_849"
            if source.endswith("txt")
            else "train/0--Parade/0_Parade_marchingband_1_849"
        ]
        assert record["objects"]["bbox"] == [[10, 20, 30, 50], [50, 40, 70, 60]] and not problems
        assert record["objects"]["category"] == ["face", "face"] and record["objects"]["ignore"] == [False, True]
        assert record["objects"]["occlusion"] == [2, 0] and "invalid" not in record["objects"]
        assert len(records) == (4 if source.endswith("txt") else 5)
        assert sum(not record["objects"]["bbox"] for record in records.values()) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg\n2\n1 2 3 4\n", "ends after 1 of the 2 faces of a.jpg"),
        ("a.jpg\n", ":1: needs the number of faces, got a.jpg"),
        ("a.jpg\n1\n1 2 3\n", ":3: needs 4 or 10 numbers, got 1 2 3"),
        ("a.jpg\n1\n1 2 3 4\nnotes\n", ":4: needs the name of an image, got notes"),
        ("", "contains no annotated image"),
    ],
)
def test_wider_face_files_that_cannot_be_read(tmp_path, capsys, text, expected):
    file = write(tmp_path / "wider_face_train_bbx_gt.txt", text)
    make_image(tmp_path / "a.jpg")
    assert expected in failure(capsys, "wider", file, "--out", tmp_path / "out")
