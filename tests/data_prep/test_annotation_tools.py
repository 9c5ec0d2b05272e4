"""data_prep: the files of annotation tools, with the peculiarities of each: VIA, labelme, CVAT, Label Studio."""

import base64
import json

import pytest

from tests.helpers.sources import failure, kinds, make_image, prepared

SQUARE = {"all_points_x": [10, 30, 30, 10], "all_points_y": [20, 20, 60, 60], "name": "polygon"}


# A training split needs objects, which these few images may not have, so they all go to the test split.
TO_TEST = ("--split-ratio", "0,0,100")


# ---- VIA -------------------------------------------------------------------------------------------------------------


def via_entry(filename: str, shapes: list[dict], attributes: dict, listed: bool = True) -> dict:
    regions = [{"shape_attributes": shape, "region_attributes": attributes} for shape in shapes]
    return {"filename": filename, "size": 1, "regions": regions if listed else dict(enumerate(regions))}


@pytest.mark.parametrize("wrapped", [False, True])
def test_via_shapes_become_the_boxes_around_them(tmp_path, capsys, wrapped):
    make_image(tmp_path / "in" / "a.png")
    shapes = [
        {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 10},
        SQUARE,
        {"name": "circle", "cx": 50, "cy": 40, "r": 10},
        {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 5, "theta": 1.5707963267948966},
        {"name": "point", "cx": 3, "cy": 4},
        {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]},
        {"name": "rect", "x": 5, "y": 6},
        {"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1]},
    ]
    entries = {"a.png1": via_entry("a.png", shapes, {"kind": "cell"}, listed=wrapped)}
    project = {"_via_settings": {}, "_via_img_metadata": entries} if wrapped else entries
    (tmp_path / "in" / "via_region_data.json").write_text(json.dumps(project))
    records, problems, _ = prepared(capsys, "via", tmp_path / "in", "--out", tmp_path / "out")
    boxes = [[5, 6, 25, 16], [10, 20, 30, 60], [40, 30, 60, 50], [45, 20, 55, 60]]
    assert records["a"]["objects"] == {"bbox": boxes, "category": ["cell"] * 4, "ignore": [False] * 4}
    assert sorted(kind for _, kind, _ in kinds(problems)) == ["bad_box", "bad_box", "no_box", "no_box"]


def test_via_classes_come_from_one_attribute(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    file = tmp_path / "in" / "via.json"
    file.write_text(json.dumps({"a": via_entry("a.png", [SQUARE], {"kind": {"cat": True, "dog": False}, "seen": "y"})}))
    message = failure(capsys, "via", file, "--out", tmp_path / "out")
    assert "kind (1 regions), seen (1 regions)" in message and "--label-field" in message
    message = failure(capsys, "via", file, "--label-field", "knd", "--out", tmp_path / "out")
    assert "--label-field knd: no region" in message and "there are: kind" in message
    records, *_ = prepared(capsys, "via", file, "--label-field", "kind", "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["cat"]
    file.write_text(json.dumps({"a": via_entry("a.png", [SQUARE], {"kind": {"cat": True, "dog": True}})}))
    assert "must be one class" in failure(capsys, "via", file, "--out", tmp_path / "o")
    file.write_text(json.dumps({"a": via_entry("a.png", [SQUARE], {})}))
    assert "--default-class" in failure(capsys, "via", file, "--out", tmp_path / "o")
    records, *_ = prepared(capsys, "via", file, "--default-class", "cat", "--out", tmp_path / "o")
    assert records["a"]["objects"]["category"] == ["cat"]


def test_via_csv_has_a_row_for_each_region(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png"), make_image(tmp_path / "in" / "b.png")
    header = "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    shape = json.dumps(SQUARE).replace('"', '""')
    rows = [f'a.png,1,"{{}}",1,0,"{shape}","{{""kind"":""cell""}}"', 'b.png,1,"{}",0,0,"{}","{}"']
    file = tmp_path / "in" / "via_export_csv.csv"
    for i, first in enumerate((header, header.removeprefix("#"))):  # VIA 1 and VIA 2
        file.write_text("\n".join([first, *rows]))
        records, *_ = prepared(capsys, "via", file, *TO_TEST, "--out", tmp_path / f"out{i}")
        assert records["a"]["objects"]["bbox"] == [[10, 20, 30, 60]] and records["b"]["objects"]["bbox"] == []
    file.write_text("\n".join([header, *rows, "b.png,1,{},1,0", 'c.png,1,"{}",1,0,"{corrupt","{}"']))
    message = failure(capsys, "via", file, "--out", tmp_path / "o")
    assert ":4: has 5 columns, the header has 7" in message and ":5: not JSON" in message
    file.write_text("filename,x\na.png,1")
    assert "region_attributes, region_shape_attributes" in failure(capsys, "via", file, "--out", tmp_path / "o")


def test_via_faults_are_collected(tmp_path, capsys):
    file = tmp_path / "in.json"
    file.write_text(json.dumps({"a": {"size": 1}, "b": {"filename": "b.png", "regions": [7]}, "c": None}))
    message = failure(capsys, "via", file, "--out", tmp_path / "out")
    assert "entry 0 needs `filename`" in message and "regions[0] needs shape_attributes" in message
    assert "entry 2 needs" in message
    file.write_text(json.dumps({"project": {}, "view": {}, "metadata": {}}))
    assert "VIA 3" in failure(capsys, "via", file, "--out", tmp_path / "out")


# ---- labelme ---------------------------------------------------------------------------------------------------------


def labelme(path, shapes: list[dict], image_path: str | None, data: str | None = None, size=(100, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": data}
    path.write_text(json.dumps(content | {"imageWidth": size[0], "imageHeight": size[1]}))
    return path


def shape(kind: str | None, *points, label: str = "cell", **more) -> dict:
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, **more}


def test_labelme_shapes_become_the_boxes_around_them(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    shapes = [
        shape("rectangle", (30, 60), (10, 20)),  # drawn from the lower right corner
        shape("polygon", (5, 5), (9, 7), (6, 30)),
        shape(None, (5, 5), (9, 7), (6, 30)),
        shape("circle", (50, 40), (53, 44)),
        shape("rectangle", (1, 1), (9, 9), flags={"difficult": True}),
        shape("point", (5, 5)),
        shape("linestrip", (5, 5), (6, 6)),
        shape("mask", (5, 5), (6, 6), mask="iVBORw0KGgo="),
        shape("rectangle", (5, 5)),
    ]
    labelme(tmp_path / "in" / "a.json", shapes, "a.png")
    (tmp_path / "in" / "settings.json").write_text("{}")
    records, problems, printed = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"] == {
        "bbox": [[10, 20, 30, 60], [5, 5, 9, 30], [5, 5, 9, 30], [45, 35, 55, 45], [1, 1, 9, 9], [5, 5, 6, 6]],
        "category": ["cell"] * 6,
        "ignore": [False] * 4 + [True, False],
    }
    assert sorted(kind for _, kind, _ in kinds(problems)) == ["bad_box", "no_box", "no_box"]
    assert [entry["value"]["shape_type"] for entry in problems if entry["kind"] == "no_box"] == [
        "point",
        "linestrip",
    ]
    assert "1 .json file(s) have no `shapes`" in printed


@pytest.mark.parametrize("image_path", ["..\\images\\a.png", "/home/somebody/a.png", "b.png", "", None])
def test_labelme_images_are_found_despite_a_wrong_path(tmp_path, capsys, image_path):
    folder = tmp_path / ("images" if image_path and "images" in image_path else "in")
    place = make_image(folder / "a.png")
    labelme(tmp_path / "in" / "a.json", [shape("rectangle", (1, 2), (3, 4))], image_path)
    records, *_ = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["image"].endswith(str(place.relative_to(tmp_path)).removeprefix("images/"))


def test_labelme_images_embedded_in_the_file(tmp_path, capsys):
    """One image is on disk and is referenced, the other is written into the dataset; the source is not changed."""
    on_disk = make_image(tmp_path / "in" / "a.png")
    content = make_image(tmp_path / "elsewhere.png").read_bytes()
    embedded = base64.b64encode(content).decode()
    labelme(tmp_path / "in" / "a.json", [shape("rectangle", (1, 2), (3, 4))], "a.png", embedded)
    labelme(tmp_path / "in" / "b.json", [shape("rectangle", (1, 2), (3, 4))], "lost.jpg", embedded)
    records, *_ = prepared(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["image"] == str(on_disk) and on_disk.is_file()
    assert records["b"]["image"] == "images/b.png"
    assert (tmp_path / "out" / "images" / "b.png").read_bytes() == content
    labelme(tmp_path / "in" / "b.json", [], "lost.jpg", "not an image!")
    assert "b: " in (message := failure(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "o"))
    assert "not an image that Pillow can read" in message


def test_labelme_faults_are_collected(tmp_path, capsys):
    for name, content in (("a", {"shapes": 1}), ("b", {"shapes": [{}]}), ("c", {"shapes": [], "imagePath": 5})):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(content))
    message = failure(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert "shapes must be a list" in message and "shapes[0] needs points" in message
    assert "imagePath must be text" in message
    (tmp_path / "in" / "d.json").write_text("{corrupt")
    (tmp_path / "in" / "e.json").write_text(json.dumps({"shapes": [{"points": [], "shape_type": ["rectangle"]}]}))
    message = failure(capsys, "labelme", tmp_path / "in", "--out", tmp_path / "out")
    assert "d.json: not JSON" in message and "shape_type must be text" in message and "shapes must be a list" in message
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "coco.json").write_text("{}")
    assert "no .json file has `shapes`" in failure(capsys, "labelme", tmp_path / "other", "--out", tmp_path / "out")


# ---- CVAT ------------------------------------------------------------------------------------------------------------


def cvat(path, images: str, labels: tuple[str, ...] = ("cat", "dog")):
    names = "".join(f"<label><name>{name}</name></label>" for name in labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotations><version>1.1</version><meta><task><labels>{names}</labels></task></meta>{images}</annotations>"
    )
    return path


def test_cvat_shapes_attributes_and_class_order(tmp_path, capsys):
    make_image(tmp_path / "in" / "images" / "a.png")
    shapes = """
      <box label="dog" xtl="1.5" ytl="2" xbr="30" ybr="40"><attribute name="age">7</attribute></box>
      <box label="dog" xtl="40" ytl="30" xbr="60" ybr="50" rotation="45.0"/>
      <polygon label="dog" points="5.0,5.0;9.0,7.0;6.0,30.0"/>
      <ellipse label="dog" cx="50" cy="40" rx="20" ry="5" rotation="90"/>
      <mask label="dog" rle="1, 2" left="10" top="20" width="30" height="5"/>
      <polyline label="dog" points="1,1;2,2"/><points label="dog" points="1,1"/>
      <tag label="dog"/><box label="dog" xtl="1" ytl="x" xbr="30" ybr="40"/>"""
    cvat(tmp_path / "in" / "annotations.xml", f'<image id="0" name="a.png" width="100" height="80">{shapes}</image>')
    records, problems, printed = prepared(capsys, "cvat", tmp_path / "in", "--out", tmp_path / "out")
    half = 10 * 2**0.5
    expected = [[1.5, 2, 30, 40], [50 - half, 40 - half, 50 + half, 40 + half], [5, 5, 9, 30], [45, 20, 55, 60]]
    for box, wanted in zip(records["a"]["objects"]["bbox"], [*expected, [10, 20, 40, 25]], strict=True):
        assert box == pytest.approx(wanted, abs=0.001)
    assert records["a"]["objects"]["age"] == ["7", None, None, None, None]
    assert sorted(kind for _, kind, _ in kinds(problems)) == ["bad_box", "no_box", "no_box"]
    assert "no objects of class cat" in printed


def test_cvat_subsets_are_splits(tmp_path, capsys):
    box = '<box label="cat" xtl="1" ytl="2" xbr="30" ybr="40"/>'
    images = [
        f'<image id="{i}" name="a.png" subset="{subset}" width="100" height="80">{box}</image>'
        for i, subset in enumerate(("Train", "Validation"))
    ]
    for subset in ("Train", "Validation"):
        make_image(tmp_path / "in" / "images" / subset / "a.png")
    cvat(tmp_path / "in" / "annotations.xml", "".join(images), ("cat",))
    records, *_ = prepared(capsys, "cvat", tmp_path / "in", "--out", tmp_path / "out")
    assert {record["split"]: record["image"].split("/")[-2] for record in records.values()} == {
        "train": "Train",
        "validation": "Validation",
    }


def test_cvat_tasks_of_a_project_with_equal_image_names(tmp_path, capsys):
    """In folders of their subsets, each image keeps its own boxes. If one file would serve both, nothing is written."""

    def image(subset: str, task: int, x: int) -> str:
        box = f'<box label="cat" xtl="{x}" ytl="2" xbr="90" ybr="40"/>'
        return f'<image id="0" name="a.png" subset="{subset}" task_id="{task}" width="100" height="80">{box}</image>'

    for subset in ("north", "south"):
        make_image(tmp_path / "in" / "images" / subset / "a.png")
    images = image("north", 3, 10) + image("south", 4, 20)
    file = cvat(tmp_path / "in" / "annotations.xml", images, ("cat",))
    records, *_ = prepared(capsys, "cvat", file, "--out", tmp_path / "out")
    found = {name: (record["image"], record["objects"]["bbox"]) for name, record in records.items()}
    folder = tmp_path / "in" / "images"
    assert found == {
        "north/a": (str(folder / "north" / "a.png"), [[10, 2, 90, 40]]),
        "south/a": (str(folder / "south" / "a.png"), [[20, 2, 90, 40]]),
    }

    cvat(file, images + image("south", 5, 30), ("cat",))
    message = failure(capsys, "cvat", file, "--out", tmp_path / "new" / "out")
    assert "a.png of task_id 4 of subset south and of task_id 5 of subset south" in message
    make_image(tmp_path / "flat" / "a.png")
    for subset in ("south", "test"):
        other = cvat(tmp_path / "flat" / "annotations.xml", image("train", 3, 10) + image(subset, 4, 20), ("cat",))
        assert "only one such image" in failure(capsys, "cvat", other, "--out", tmp_path / "new" / "out")


def test_cvat_without_images_and_other_xml_are_rejected(tmp_path, capsys):
    file = cvat(tmp_path / "annotations.xml", '<track id="0"/>')
    assert "contains no annotated image" in failure(capsys, "cvat", file, "--out", tmp_path / "out")
    file.write_text("<annotation/>")
    assert "the root element is <annotation>" in failure(capsys, "cvat", file, "--out", tmp_path / "out")


# ---- Label Studio ----------------------------------------------------------------------------------------------------


def region(kind: str, value: dict, name: str = "label", region_id: str = "r", **more) -> dict:
    return {
        "id": region_id,
        "from_name": name,
        "type": kind,
        "value": value,
        "original_width": 100,
        "original_height": 80,
        **more,
    }


def rectangle(x, y, width, height, label: str | None = "cat", rotation=0, **more) -> dict:
    labels = {"rectanglelabels": [label]} if label else {}
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, **labels}
    return region("rectanglelabels", value, **more)


def labelstudio(path, *tasks: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(tasks)))
    return path


def task(image: str, *results: dict, **more) -> dict:
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)}], **more}


def test_labelstudio_regions_become_boxes_in_pixels(tmp_path, capsys):
    """Values are percent of each side. A 20 × 8 px box at (40, 40), rotated by 90° about that corner, becomes 8 × 20 px."""
    make_image(tmp_path / "in" / "a.png")
    results = [
        rectangle(10, 20, 30, 40, region_id="1"),
        rectangle(40, 50, 20, 10, rotation=90, region_id="2"),
        region("polygonlabels", {"points": [[5, 5], [9, 7], [6, 30]], "polygonlabels": ["dog"]}, region_id="3"),
        region("ellipselabels", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "ellipselabels": ["dog"]}, region_id="4"),
        region("keypointlabels", {"x": 5, "y": 5, "width": 1, "keypointlabels": ["dog"]}, region_id="5"),
        region("brushlabels", {"format": "rle", "rle": [1], "brushlabels": ["dog"]}, region_id="6"),
        rectangle(1, None, 3, 4, region_id="7"),
        region("choices", {"choices": ["good"]}, name="quality", region_id="8"),
    ]  # fmt: skip
    file = labelstudio(tmp_path / "in" / "export.json", task("/data/upload/1/0badcafe-a.png", *results))
    records, problems, _ = prepared(capsys, "labelstudio", file, "--out", tmp_path / "out")
    (record,) = records.values()
    wanted = [[10, 16, 40, 48], [32, 40, 40, 60], [5, 4, 9, 24], [30, 32, 70, 48]]
    for box, expected in zip(record["objects"]["bbox"], wanted, strict=True):
        assert box == pytest.approx(expected, abs=0.001)
    assert record["objects"]["category"] == ["cat", "cat", "dog", "dog"]
    assert record["image"] == str(tmp_path / "in" / "a.png")
    assert sorted(kind for _, kind, _ in kinds(problems)) == ["bad_box", "no_box", "no_box"]


@pytest.mark.parametrize(
    "address",
    ["/data/local-files/?d=photos/a%20b.png", "s3://bucket/photos/a%20b.png", "photos/a b.png", "a b.png"],
)
def test_labelstudio_addresses(tmp_path, capsys, address):
    place = make_image(tmp_path / "in" / "photos" / "a b.png")
    file = labelstudio(tmp_path / "in" / "export.json", task(address, rectangle(10, 20, 30, 40)))
    records, *_ = prepared(capsys, "labelstudio", file, "--images", place.parent, "--out", tmp_path / "out")
    assert [record["image"] for record in records.values()] == [str(place)]


def test_labelstudio_min_export(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    entry = {"id": 1, "image": "a.png", "label": [value, value | {"x": 50}], "quality": ["good"], "annotator": 2}
    file = labelstudio(tmp_path / "in" / "min.json", entry, {"id": 2, "image": "b.png"})
    make_image(tmp_path / "in" / "b.png")
    records, *_ = prepared(capsys, "labelstudio", file, *TO_TEST, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[10, 16, 40, 48], [50, 16, 80, 48]]
    assert records["b"]["objects"]["bbox"] == []
    labelstudio(file, entry, entry | {"label": []})  # of a second annotator
    records, problems, _ = prepared(capsys, "labelstudio", file, "--out", tmp_path / "second")
    assert len(records["a"]["objects"]["bbox"]) == 2 and kinds(problems) == [("a", "annotations", 1)]


@pytest.mark.parametrize(
    ("more", "classes"), [([], ["cat", "dog", "z"]), (["--label-field", "kind"], ["big", "z", "z"])]
)
def test_labelstudio_min_export_of_several_controls(tmp_path, capsys, more, classes):
    """Every control repeats the shape of a region, with or without the image's size, but a region is one object. Two regions
    with the same shape are two objects."""
    make_image(tmp_path / "in" / "a.png")
    turned = {"x": 30, "y": 20, "width": 30, "height": 40, "rotation": 30}
    other = {"x": 70, "y": 50, "width": 20, "height": 20, "rotation": 0}
    size = {"original_width": 100, "original_height": 80}
    entry = {
        "id": 1,
        "image": "a.png",
        "box": [turned | size, other | size, other | size],
        "label": [turned | {"labels": ["cat"]}, other | {"labels": ["dog"]}],
        "kind": [turned | size | {"choices": ["big"]}] if more else ["big"],
    }
    file = labelstudio(tmp_path / "in" / "min.json", entry)
    records, *_ = prepared(capsys, "labelstudio", file, "--default-class", "z", *more, "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == classes
    half = 30 * 3**0.5 / 2
    wanted = [[30 - 16, 16, 30 + half, 16 + 15 + 16 * 3**0.5], [70, 40, 90, 56], [70, 40, 90, 56]]
    for box, expected in zip(records["a"]["objects"]["bbox"], wanted, strict=True):
        assert box == pytest.approx(expected, abs=0.001)


def test_labelstudio_labels_of_several_controls(tmp_path, capsys):
    """A region's label may be a separate result. If there are two, the user must choose."""
    make_image(tmp_path / "in" / "a.png")
    box = rectangle(10, 20, 30, 40, label=None, name="box")
    labels = [region("labels", {"labels": [label]}, name=name) for name, label in (("kind", "cat"), ("sex", "tom"))]
    file = labelstudio(tmp_path / "in" / "export.json", task("a.png", box, *labels))
    message = failure(capsys, "labelstudio", file, "--out", tmp_path / "out")
    assert "kind, sex" in message and "--label-field" in message
    records, *_ = prepared(capsys, "labelstudio", file, "--label-field", "kind", "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["cat"]


def test_labelstudio_annotations_that_are_not_used(tmp_path, capsys):
    for name in "abcd":
        make_image(tmp_path / "in" / f"{name}.png")
    box, other = {"result": [rectangle(10, 20, 30, 40)]}, {"result": [rectangle(50, 20, 30, 40)]}
    file = labelstudio(
        tmp_path / "in" / "export.json",
        task("a.png") | {"annotations": [box | {"was_cancelled": True}, other, box]},
        task("b.png") | {"annotations": []},
        task("c.png") | {"annotations": [box | {"was_cancelled": True}]},
        task("d.png"),
    )
    records, problems, printed = prepared(capsys, "labelstudio", file, *TO_TEST, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[50, 16, 80, 48]] and records["d"]["objects"]["bbox"] == []
    assert sorted(records) == ["a", "d"]
    assert kinds(problems) == [("a", "annotations", 2), ("b", "no_annotation", 0), ("c", "no_annotation", 1)]
    assert "2 image(s) without a split or an annotation are left out" in printed


def test_labelstudio_faults_are_collected(tmp_path, capsys):
    file = labelstudio(tmp_path / "a.json", 7, {"id": 5, "data": {"text": "hello"}}, {"id": 6, "data": 3})
    message = failure(capsys, "labelstudio", file, "--out", tmp_path / "out")
    assert "task 0 must be an object" in message and "task 5 names" in message and "task 6 names" in message
    file.write_text("{}")
    assert "list of tasks" in failure(capsys, "labelstudio", file, "--out", tmp_path / "out")


def test_labelstudio_regions_with_the_same_id(tmp_path, capsys):
    """Two boxes with the same id, or without one, stay two objects; two results for the same box become one."""
    make_image(tmp_path / "in" / "a.png")
    shared = [rectangle(10, 20, 30, 40, "cat"), rectangle(50, 20, 30, 40, "dog")]
    none = [rectangle(10, 70, 5, 5, "cat", region_id=None), rectangle(50, 70, 5, 5, "dog", region_id=None)]
    twice = [rectangle(80, 10, 10, 10, None, region_id="q"), rectangle(80, 10, 10, 10, "cow", region_id="q")]
    unknown = region("bitmasklabels", {"imageDataURL": "data:", "bitmasklabels": ["cat"]}, region_id="z")
    file = labelstudio(tmp_path / "in" / "export.json", task("a.png", *shared, *none, *twice, unknown))
    records, problems, _ = prepared(capsys, "labelstudio", file, "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["cat", "dog", "cat", "dog", "cow"]
    assert [kind for _, kind, _ in kinds(problems)] == ["no_box"]


def test_labelstudio_names_with_special_characters_of_addresses(tmp_path, capsys):
    for name in ("a.png", "a#1.png", "b%20c.png"):
        make_image(tmp_path / "in" / name)
    tasks = [task("s3://bucket/a#1.png", rectangle(10, 20, 30, 40)), task("b%20c.png") | {"id": 2}]
    file = labelstudio(tmp_path / "in" / "export.json", *tasks)
    records, *_ = prepared(capsys, "labelstudio", file, *TO_TEST, "--out", tmp_path / "out")
    assert sorted(record["image"].split("/")[-1] for record in records.values()) == ["a#1.png", "b%20c.png"]


HUGE = 10**400


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("via", "via.json", {"a": via_entry("a.png", [{"name": "circle", "cx": HUGE, "cy": 1, "r": 2}], {"k": "x"})}),
        ("via", "via.json", {"a": via_entry("a.png", [{"name": "ellipse", "theta": HUGE}], {"k": "x"})}),
        ("labelme", "a.json", {"shapes": [shape("circle", (1e200, 1), (3, 4)), shape("polygon", (HUGE, 1), (2, 2))]}),
        ("labelstudio", "e.json", [task("a.png", rectangle(HUGE, 1, 2, 3))]),
        ("labelstudio", "e.json", [task("a.png") | {"annotations": 5}]),
        ("labelstudio", "e.json", [task("a.png") | {"annotations": [{"result": 5}]}]),
        ("labelstudio", "e.json", [task("a.png", {"value": [1]})]),
        ("labelstudio", "e.json", [task("a.png", {"id": [1], "value": {"x": 1, "y": 1, "width": 1, "height": {}}})]),
    ],
)
def test_hostile_values_are_user_errors(tmp_path, capsys, kind, name, content):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / name).write_text(json.dumps(content))
    assert "error: " in failure(capsys, kind, tmp_path / "in" / name, "--out", tmp_path / "out")


def test_hostile_numbers_in_cvat(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    box = f'<box label="cat" xtl="{HUGE}" ytl="1" xbr="3" ybr="4"/>'
    turned = '<box label="cat" xtl="1" ytl="1" xbr="3" ybr="4" rotation="x"/><shape2 label="cat"/>'
    fine = '<box label="cat" xtl="1" ytl="1" xbr="3" ybr="4"><attribute name="difficult">true</attribute></box>'
    cvat(tmp_path / "in" / "annotations.xml", f'<image id="0" name="a.png">{box}{turned}{fine}</image>', ("cat",))
    records, problems, _ = prepared(capsys, "cvat", tmp_path / "in", *TO_TEST, "--out", tmp_path / "out")
    assert records["a"]["objects"]["ignore"] == [True]
    assert sorted(kind for _, kind, _ in kinds(problems)) == ["bad_box", "bad_box", "no_box"]


def test_cvat_labels_without_boxes_are_not_classes(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    file = cvat(tmp_path / "in" / "annotations.xml", '<image id="0" name="a.png"/>', ("man",))
    point = "<label><name>1</name><type>points</type><parent>man</parent></label></labels>"
    file.write_text(file.read_text().replace("</labels>", point))
    prepared(capsys, "cvat", file, *TO_TEST, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["classes"] == ["man"]
