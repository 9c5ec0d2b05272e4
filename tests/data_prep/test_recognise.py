"""data_prep auto: formats are recognized by the content of their files, and the user chooses if several fit."""

import json

import datasets
import pytest

from boxtune.common.errors import UserError
from data_prep.__main__ import main
from data_prep.formats import FORMATS
from data_prep.pipeline.recognise import recognise
from data_prep.reading.source import Options
from data_prep.reading.text_files import encoding_fault
from tests.helpers.sources import coco, failure, make_image, prepared, voc, yolo

LABELME_XML = """<annotation><filename>a.png</filename><folder>x</folder><source><sourceImage>s</sourceImage>
<sourceAnnotation>LabelMe Webtool</sourceAnnotation></source><object><name>car</name><deleted>0</deleted><polygon>
<pt><x>1</x><y>2</y></pt><pt><x>30</x><y>2</y></pt><pt><x>30</x><y>40</y></pt></polygon></object></annotation>"""
BOX = {"x": 10, "y": 20, "width": 30, "height": 40}


def write(folder, name: str, content) -> None:
    make_image(folder / "a.png")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def aabb(folder):
    write(folder, "list.json", [{"image": "a.png", "objects": [{"class": "cup", "bbox_aabb": [0, 0, 0.5, 0.5]}]}])


def via(folder):
    regions = [{"shape_attributes": {"name": "rect", **BOX}, "region_attributes": {"kind": "cup"}}]
    write(folder, "via_project.json", {"_via_img_metadata": {"a": {"filename": "a.png", "regions": regions}}})


def via_csv(folder):
    shape = json.dumps({"name": "rect", **BOX}).replace('"', '""')
    columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    write(folder, "via.csv", f'{columns}\na.png,1,"{{}}",1,0,"{shape}","{{""kind"":""cup""}}"')


def labelme(folder):
    write(folder, "a.json", {"shapes": [{"label": "cup", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"}]})


def cvat(folder):
    box = '<image id="0" name="a.png"><box label="cup" xtl="1" ytl="2" xbr="3" ybr="4"/></image>'
    write(folder, "annotations.xml", f"<annotations>{box}</annotations>")


def labelstudio(folder):
    result = {"id": "r", "from_name": "l", "type": "rectanglelabels", "value": BOX | {"rectanglelabels": ["cup"]}}
    write(folder, "export.json", [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [result]}]}])


def csv(folder):
    write(folder, "train.csv", "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,cup")


def jsonl(folder):
    objects = {"bbox": [[60, 50, 35, 25], [5, 4, 40, 36], [50, 5, 48, 25]], "category": ["cup"] * 3}
    write(folder, "metadata.jsonl", {"file_name": "a.png", "objects": objects})


def hf(folder):
    objects = {"bbox": [[60, 50, 35, 25], [5, 4, 40, 36], [50, 5, 48, 25]], "category": ["cup"] * 3}
    rows = [{"image": str(make_image(folder.parent / "p.png")), "objects": objects}]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(folder)


def cvat_video(folder):
    box = '<track id="0" label="cup"><box frame="0" outside="0" xtl="1" ytl="2" xbr="3" ybr="4"/></track>'
    make_image(folder / "images" / "frame_000000.png")
    (folder / "annotations.xml").write_text(f"<annotations>{box}</annotations>")


def labelme_xml(folder):
    write(folder, "a.xml", LABELME_XML)


def createml(folder):
    write(
        folder,
        "a.json",
        [{"image": "a.png", "annotations": [{"label": "cup", "coordinates": BOX | {"x": 50, "y": 40}}]}],
    )


def supervisely(folder):
    thing = {"classTitle": "cup", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [3, 4]], "interior": []}}
    size = {"width": 100, "height": 80}
    write(folder, "meta.json", {"classes": [{"title": "cup", "shape": "rectangle"}], "tags": []})
    write(folder, "a.png.json", {"description": "", "tags": [], "size": size, "objects": [thing]})


def wider(folder):
    write(folder, "wider_face_train_bbx_gt.txt", "a.png\n1\n10 20 30 40 0 0 0 0 0 0\n")


def in_rows(row: str):
    """A source with one text file for its image."""
    return lambda folder: write(folder, "a.txt", f"{row}\n")


def yolo_with(row: str):
    return lambda folder: yolo(folder, "names: [cup]", {"images/a.png": row})


# {example: (its format, the function that writes it)}
EXAMPLES = {
    "voc": ("voc", lambda folder: voc(folder, ["a"])),
    "coco": ("coco", lambda folder: coco(folder, [[[1, 2, 3, 4]]])),
    "yolo": ("yolo", yolo_with("0 .5 .5 .2 .2")),
    "yolo_obb": ("yolo", yolo_with("0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4")),
    "yolo_polygon": ("yolo", yolo_with("0 0.1 0.1 0.3 0.1 0.3 0.4")),
    "csv": ("csv", csv),
    "icdar_2013": ("csv", in_rows('1 2 30 40 "Footpath"')),
    "icdar_2015": ("csv", in_rows("1,2,30,2,30,40,1,40,Genaxis")),
    "icdar_2015_digits": ("csv", in_rows("1,2,30,2,30,40,1,40,2008")),
    "via": ("via", via),
    "via_csv": ("via", via_csv),
    "labelme": ("labelme", labelme),
    "labelme_xml": ("labelme_xml", labelme_xml),
    "cvat": ("cvat", cvat),
    "cvat_video": ("cvat", cvat_video),
    "labelstudio": ("labelstudio", labelstudio),
    "kitti": ("kitti", in_rows("Car 0.00 0 -1.58 10 20 30 40 1.5 1.6 3.7 2.8 1.5 8.4 -1.6")),
    "kitti_result": ("kitti", in_rows("Car 0.00 0 -1.58 10 20 30 40 1.5 1.6 3.7 2.8 1.5 8.4 -1.6 0.9")),
    "dota": ("dota", in_rows("imagesource:GF-2\ngsd:0.1\n1 2 30 2 30 40 1 40 ship 0")),
    "yolov5_obb": ("dota", yolo_with("1 2 30 2 30 40 1 40 cup 0")),
    "visdrone": ("visdrone", in_rows("10,20,30,40,1,4,0,1")),
    "wider": ("wider", wider),
    "createml": ("createml", createml),
    "supervisely": ("supervisely", supervisely),
    "aabb": ("aabb", aabb),
    "jsonl": ("jsonl", jsonl),
    "hf": ("hf", hf),
}


def make(name: str, folder) -> None:
    EXAMPLES[name][1](folder)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_format_is_recognised_and_printed(tmp_path, capsys, name):
    """Each example is recognised as its own format only: if two fit, `auto` stops."""
    make(name, tmp_path / "in")
    records, _, printed = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    format_name = EXAMPLES[name][0]
    assert f"{tmp_path / 'in'} is read as {format_name}: " in printed
    assert len(records) == 1
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["format"] == format_name


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_recognised_is_read_from_any_folder_above(tmp_path, capsys, name, depth):
    """Such as the folder into which a zip is unpacked."""
    folder = tmp_path / "in" / "/".join("wxyz"[:depth])
    make(name, folder)
    records, problems, printed = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert f"is read as {EXAMPLES[name][0]}: " in printed and not problems
    (record,) = records.values()
    assert record["objects"]["bbox"] and "no_annotation" not in printed


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_other_format_claims_an_example_whose_own_is_unknown(tmp_path, name):
    make(name, tmp_path / "in")
    others = {key: value for key, value in FORMATS.items() if key not in (EXAMPLES[name][0], "openfoodfacts")}
    options = Options(out=tmp_path / "out", scratch=tmp_path)
    with pytest.raises(UserError, match="was not recognized"):
        recognise(tmp_path / "in", others, options)


@pytest.mark.parametrize("name", ["coco", "csv", "createml", "wider"])
def test_annotations_behind_many_images_are_recognised(tmp_path, name):
    make(name, tmp_path / "in")
    for number in range(1100):
        (tmp_path / "in" / f"0{number}.png").touch()
    assert recognise(tmp_path / "in", FORMATS, Options(out=tmp_path / "out", scratch=tmp_path)) == name


def test_labels_txt_beside_labelme_files_is_not_yolo(tmp_path, capsys):
    """labelme writes labels.txt itself, and Roboflow README.dataset.txt."""
    make("labelme", tmp_path / "in")
    (tmp_path / "in" / "labels.txt").write_text("__ignore__\n_background_\ncup\n")
    (tmp_path / "in" / "README.dataset.txt").write_text("# cups\nProvided by a user\n")
    *_, printed = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert "is read as labelme" in printed


TEXTS = {
    "cp1252": "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,caf\u00e9\n",
    "gbk": "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,\u6c7d\u8f66\n",
    "big5": "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,\u6c7d\u8eca\n",
    "shift_jis": "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,\u81ea\u8ee2\u8eca\n",
    "utf-16": "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,cup\n",
    "utf-16-le": "filename,xmin,ymin,xmax,ymax,class\na.png,1,2,3,4,cup\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_file_in_another_encoding_is_named_with_it(tmp_path, capsys, encoding, suffix):
    make_image(tmp_path / "in" / "a.png")
    shapes = {"shapes": [{"label": TEXTS[encoding].split(",")[-1].strip(), "points": [[1, 2], [3, 4]]}]}
    text = TEXTS[encoding] if suffix == ".csv" else json.dumps(shapes, ensure_ascii=False)
    (tmp_path / "in" / f"a{suffix}").write_bytes(text.encode(encoding))
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert f"a{suffix}" in message
    expected = {"utf-16": "UTF-16", "utf-16-le": "UTF-16LE"}.get(encoding, encoding.upper())
    assert expected in message, message


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Gr\u00f6\u00dfe", "CP1252"),
        ("a.jpg,\u00e9lan, \u00e9t\u00e9", "CP1252"),
        ("\u00c4pfel,\u00c4nderung", "CP1252"),
        ("\u732b,\u72d7", "GBK"),
        ("\u7ea2\u7eff\u706f", "GBK"),
        ("\u884c\u4eba,\u6a5f\u8eca", "BIG5"),
        ("\u505c\u8eca\u6a19\u8a8c", "BIG5"),
        ("\u308a\u3093\u3054", "SHIFT_JIS"),
        ("\u30cd\u30b3,\u4ea4\u901a\u4fe1\u53f7", "SHIFT_JIS"),
    ],
)
def test_the_encoding_of_a_file_is_guessed(tmp_path, text, encoding):
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert f"not UTF-8 text (line 1); it looks like {encoding}. Save" in encoding_fault(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(text)
    assert encoding_fault(tmp_path / "a.csv") is None


def test_if_two_formats_fit_the_user_must_choose(tmp_path, capsys):
    make("coco", tmp_path / "in")
    make("csv", tmp_path / "in")
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert "fits 2 formats" in message and "python -m data_prep coco" in message
    assert "coco: " in message and "has the lists images, annotations, categories" in message and "csv: " in message


def test_if_no_format_fits_the_message_names_what_was_found(tmp_path, capsys):
    write(tmp_path / "in", "notes.json", "{corrupt")
    write(tmp_path / "in", "notes.xml", "<html>")
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert f"The format of {tmp_path / 'in'} was not recognized. It contains 1 .png, 1 .json, 1 .xml." in message
    assert "labelme: " in message
    assert "does not exist" in failure(capsys, "auto", tmp_path / "lost", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} contains no files" in failure(
        capsys, "auto", tmp_path / "empty", "--out", tmp_path / "out"
    )


def test_an_earlier_output_inside_the_source_is_ignored(tmp_path, capsys):
    make("voc", tmp_path / "in")
    for _ in range(2):
        prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "in" / "prepared", "--overwrite")


def test_a_folder_of_images_alone_asks_for_the_annotations(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert (
        f"contains only images. Name the annotations as SOURCE, and the images with --images {tmp_path / 'in'}"
        in message
    )


def test_a_misspelled_path_is_not_looked_up_on_the_hub(tmp_path, capsys, monkeypatch):
    """`data/aquariun` has the form of a Hub id, but a look-up would be slow and hide the typing error."""
    monkeypatch.chdir(tmp_path)
    make("voc", tmp_path / "data" / "aquarium")
    message = failure(capsys, "auto", "data/aquariun", "--out", tmp_path / "out")
    assert "data/aquariun does not exist (data/ contains: aquarium)" in message


@pytest.mark.parametrize("place", [".", "labels"])
def test_yolo_labels_are_recognised_with_the_names_or_without(tmp_path, capsys, place):
    """LabelImg writes classes.txt next to the labels; if there is none, the YOLO reader explains what is missing."""
    make_image(tmp_path / "in" / "images" / "a.png")
    (tmp_path / "in" / "labels").mkdir()
    (tmp_path / "in" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    message = failure(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert "contains no class names. Add data.yaml with `names: [...]`, or classes.txt" in message
    (tmp_path / "in" / place / "classes.txt").write_text("cup\n")
    records, *_ = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert records["images/a"]["objects"]["category"] == ["cup"]


@pytest.mark.parametrize("name", [*FORMATS, "auto", "nutrition", "recipe", "export", "show"])
def test_help_fits_a_terminal(capsys, name):
    with pytest.raises(SystemExit):
        main([name, "-h"])
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 96] == []
    if name == "auto":
        assert all(known in text for known in FORMATS)


def test_a_csv_without_a_class_is_recognised(tmp_path, capsys):
    write(tmp_path / "in", "train.csv", "image,xmin,ymin,xmax,ymax\na.png,1,2,3,4")
    words = ("auto", tmp_path / "in", "--out", tmp_path / "out")
    assert "name it with --default-class" in failure(capsys, *words)
    records, *_ = prepared(capsys, *words, "--default-class", "cup")
    assert records["a"]["objects"]["category"] == ["cup"]


def test_a_csv_with_semicolons_is_recognised(tmp_path, capsys):
    write(tmp_path / "in", "train.csv", "filename;xmin;ymin;xmax;ymax;class\na.png;1;2;3;4;cup")
    records, *_ = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[1, 2, 3, 4]]
