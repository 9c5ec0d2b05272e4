"""data_prep csv: corners, sides, lists and OpenImages' columns, and a table for each image."""

import json

import pytest

from data_prep.formats.csv_columns import boxes_in
from tests.helpers.sources import failure, kinds, make_image, prepared

QUAD = "1,2,30,5,28,40,3,38"  # its surrounding box is 1, 2, 30, 40


def table(folder, text: str, size=(100, 80)):
    make_image(folder / "a.png", *size)
    (folder / "rows.csv").write_text(text)
    return folder / "rows.csv"


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (f"filename,class,x1,y1,x2,y2,x3,y3,x4,y4\na.png,cat,{QUAD}\n", [1, 2, 30, 40]),
        (f"filename,x0,y0,x1,y1,x2,y2,x3,y3,class\na.png,{QUAD},cat\n", [1, 2, 30, 40]),
        (f"a.png,{QUAD},cat\n", [1, 2, 30, 40]),
        (f"a.png,cat,{QUAD}\n", [1, 2, 30, 40]),
        ("filename,class,x1,y1,x2,y2\na.png,cat,1,2,30,40\n", [1, 2, 30, 40]),
        ("filename,x,y,w,h,class\na.png,1,2,30,40,cat\n", [1, 2, 31, 42]),
        ("filename,x,y,width,height,class\na.png,1,2,30,40,cat\n", [1, 2, 31, 42]),
        ("filename,width,height,x,y,w,h,class\na.png,100,80,1,2,30,40,cat\n", [1, 2, 31, 42]),
        ("filename,image_width,image_height,left,top,width,height,class\na.png,100,80,1,2,30,40,cat\n", [1, 2, 31, 42]),
        ("filename,xmin,ymin,bbox_width,bbox_height,class\na.png,1,2,30,40,cat\n", [1, 2, 31, 42]),
        ("filename,x_center,y_center,w,h,class\na.png,30,40,10,20,cat\n", [25, 30, 35, 50]),
    ],
)
def test_boxes_in_columns(tmp_path, capsys, text, box):
    file = table(tmp_path / "in", text)
    for name in ("csv", "auto"):
        records, problems, _ = prepared(capsys, name, file, "--out", tmp_path / name)
        assert records["a"]["objects"] == {"bbox": [box], "category": ["cat"], "ignore": [False]} and not problems
        assert (records["a"]["width"], records["a"]["height"]) == (100, 80)


def test_a_corner_that_is_no_number_is_a_bad_box(tmp_path, capsys):
    file = table(
        tmp_path / "in", f"filename,class,x1,y1,x2,y2,x3,y3,x4,y4\na.png,cat,{QUAD}\na.png,cat,1,2,3,4,5,?,7,8\n"
    )
    records, problems, _ = prepared(capsys, "csv", file, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[1, 2, 30, 40]]
    assert kinds(problems) == [("a", "bad_box", [1, 2, 3, 4, 5, "?", 7, 8])]


BOXES = [[60, 50, 35, 25], [5, 4, 40, 36], [50, 5, 48, 25]]  # on 100 × 80 pixels, only a corner and a size fits


@pytest.mark.parametrize(
    "spelling", [json.dumps, lambda box: str([float(v) for v in box]), lambda box: f"{box}".replace(",", "")]
)
def test_a_list_in_a_column(tmp_path, capsys, spelling):
    """As in the tables of the global wheat competition; the layout is inferred, or stated."""
    rows = "".join(f'a.png,100,80,"{spelling(box)}",cat\n' for box in BOXES)
    file = table(tmp_path / "in", f"image_id,width,height,bbox,class\n{rows}")
    records, *_, printed = prepared(capsys, "auto", file, "--out", tmp_path / "out")
    assert records["a"]["objects"]["bbox"] == [[x, y, x + w, y + h] for x, y, w, h in BOXES]
    assert "boxes: read as xywh" in printed

    file.write_text('image_id,bbox,class\na.png,"[1, 2, 30, 40]",cat\na.png,[],cat\na.png,nan,cat\n')
    records, problems, _ = prepared(capsys, "csv", file, "--bbox-format", "xyxy", "--out", tmp_path / "stated")
    assert records["a"]["objects"]["bbox"] == [[1, 2, 30, 40]] and not problems


@pytest.mark.parametrize(
    ("cell", "boxes"),
    [
        ("[1, 2, 3, 4]", [[1, 2, 3, 4]]),
        ("[1. 2. 3. 4.5]", [[1, 2, 3, 4.5]]),
        ("(1, 2, 3, 4)", [[1, 2, 3, 4]]),
        ("1 2 3 4", [[1, 2, 3, 4]]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("[]", []),
        ("nan", []),
        ("broken", [["broken"]]),
    ],
)
def test_lists_in_cells(cell, boxes):
    assert boxes_in({"bbox": cell}, ["bbox"]) == boxes


def test_open_images(tmp_path, capsys):
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
    for split in ("train", "validation"):
        make_image(tmp_path / "in" / split / f"00{split}.jpg")
        rows = (
            f"00{split},xclick,/m/0k4j,1,0.1,0.5,0.25,0.75,0,0,0,0,0\n00{split},xclick,/m/01g317,1,0,1,0,1,0,0,1,0,0\n"
        )
        (tmp_path / "in" / f"oidv6-{split}-annotations-bbox.csv").write_text(header + rows)
    (tmp_path / "in" / "class-descriptions-boxable.csv").write_text("/m/0k4j,Car\n/m/01g317,Person\n")
    (tmp_path / "in" / "train-images.csv").write_text("ImageID,Subset,OriginalURL\n00train,train,http://x/y.jpg\n")
    for name in ("csv", "auto"):
        records, _, printed = prepared(capsys, name, tmp_path / "in", "--out", tmp_path / name)
        assert {record["split"] for record in records.values()} == {"train", "validation"}
        objects = records["00train"]["objects"]
        assert objects["bbox"] == [[10, 20, 50, 60], [0, 0, 100, 80]]
        assert objects["category"] == ["Car", "Person"] and objects["ignore"] == [False, True]
        assert "class-descriptions-boxable.csv has no boxes and is left out" in printed


# ---- one table for each image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_icdar(tmp_path, capsys, suffix):
    for split, number in (("training", 1), ("test", 1)):
        make_image(tmp_path / "in" / f"ch4_{split}_images" / f"img_{number}.jpg")
        labels = tmp_path / "in" / f"ch4_{split}_localization_transcription_gt"
        labels.mkdir()
        rows = f'\ufeff{QUAD},"Genaxis, Theatre\r\n50,60,90,60,90,70,50,70,###\r\n'
        (labels / f"gt_img_{number}.{suffix}").write_text(rows, encoding="utf-8")
    make_image(tmp_path / "in" / "ch4_training_images" / "img_2.jpg")
    (tmp_path / "in" / "ch4_training_localization_transcription_gt" / f"gt_img_2.{suffix}").write_text("")
    for name in ("csv", "auto"):
        records, problems, printed = prepared(capsys, name, tmp_path / "in", "--out", tmp_path / name)
        assert {record["split"] for record in records.values()} == {"train", "test"} and not problems
        objects = records["ch4_training_images/img_1"]["objects"]
        assert objects["bbox"] == [[1, 2, 30, 40], [50, 60, 90, 70]] and objects["category"] == ["text", "text"]
        assert objects["text"] == ['"Genaxis, Theatre', "###"] and objects["ignore"] == [False, True]
        assert records["ch4_training_images/img_2"]["objects"]["bbox"] == []
        assert records["ch4_test_images/img_1"]["split"] == "test"
        assert "kept as `text`" in printed
    (tmp_path / "in" / "ch4_training_images" / "img_1.jpg").unlink()
    assert "missing" in failure(capsys, "csv", tmp_path / "in", "--out", tmp_path / "o")


@pytest.mark.parametrize("comma", ["", ","])
def test_icdar_2013(tmp_path, capsys, comma):
    """The training set has spaces between the numbers, the test set commas."""
    for number, word in ((1, "Foot, path"), (2, "")):
        make_image(tmp_path / "in" / "images" / f"img_{number}.jpg")
        rows = f'1{comma} 2{comma} 30{comma} 40{comma} "{word}"\r\n50{comma} 60{comma} 90{comma} 70{comma} "###"\r\n'
        (tmp_path / "in" / f"gt_img_{number}.txt").write_text(rows if word else "", encoding="utf-8")
    for name in ("csv", "auto"):
        words = (name, tmp_path / "in", "--split-ratio", "0,0,100", "--default-class", "word")
        records, problems, _ = prepared(capsys, *words, "--out", tmp_path / name)
        objects = records["images/img_1"]["objects"]
        assert objects["bbox"] == [[1, 2, 30, 40], [50, 60, 90, 70]] and not problems
        assert objects["text"] == ["Foot, path", "###"] and objects["ignore"] == [False, True]
        assert objects["category"] == ["word", "word"] and records["images/img_2"]["objects"]["bbox"] == []


def test_quoted_classes_are_no_texts(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.csv").write_text('1,2,30,40,"cat"\n')
    records, *_ = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert records["a"]["objects"]["category"] == ["cat"] and "text" not in records["a"]["objects"]


@pytest.mark.parametrize("rows", ["1,2,30,40,cat\n", "xmin,ymin,xmax,ymax,class\n1,2,30,40,cat\n"])
def test_a_csv_of_corners_for_each_image(tmp_path, capsys, rows):
    for name in ("a", "b"):
        make_image(tmp_path / "in" / "images" / f"{name}.png")
        (tmp_path / "in" / f"{name}.csv").write_text(rows)
    records, problems, _ = prepared(capsys, "auto", tmp_path / "in", "--out", tmp_path / "out")
    assert {name: record["objects"]["bbox"] for name, record in records.items()} == {
        "images/a": [[1, 2, 30, 40]],
        "images/b": [[1, 2, 30, 40]],
    }
    assert records["images/a"]["objects"]["category"] == ["cat"] and not problems


def test_a_row_that_is_no_box_is_named(tmp_path, capsys):
    make_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "gt_a.txt").write_text(f"{QUAD},word\n1,2,x,4,word\n")
    message = failure(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert "gt_a.txt:2: needs four or eight numbers and a text or class" in message
