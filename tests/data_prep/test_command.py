"""data_prep: the record, the boxes, the names, and what the command does with --out."""

import json
import os
import subprocess
import sys
import tracemalloc

import pytest

from boxtune.common.errors import UserError
from boxtune.data.dataset import read_info
from data_prep.__main__ import main
from data_prep.command import prepare_from_words
from tests.helpers.records import ROOT
from tests.helpers.sources import coco, failure, kinds, make_image, prepared, yolo


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
        command += ["--workers", seed]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) == 5


def test_workers_are_a_number(tmp_path, capsys):
    message = failure(capsys, "coco", coco(tmp_path / "in", [[]]), "--out", tmp_path / "out", "--workers", "0")
    assert "'0': give a number of threads, at least 1" in message


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
    # x, y, width, height taken for corners
    rows = "".join(f"p{i}.png,60,50,20,20,cell\np{i}.png,1,2,30,40,cell\n" for i in range(4))
    for i in range(4):
        make_image(tmp_path / "in" / f"p{i}.png")
    (tmp_path / "in" / "boxes.csv").write_text("filename,xmin,ymin,xmax,ymax,class\n" + rows)
    message = failure(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out")
    assert "The box format looks wrong: 4 of 8" in message and message.count("(100 × 80): cell [60, 50, 20, 20]") == 3
    assert "read as x0 y0 x1 y1 in pixels" in message and "a corner and a size" in message
    assert "--bbox-format" not in message, "which CSV does not read"
    records, problems, _ = prepared(capsys, "csv", tmp_path / "in", "--out", tmp_path / "out", "--allow-bad-boxes")
    assert len(records) == 4 and len(problems) == 4


def test_sizes_have_the_borders_that_evaluation_has(tmp_path, capsys):
    boxes = [[0, 0, 32, 31], [0, 0, 32, 32], [0, 0, 96, 95], [0, 0, 96, 96]]
    *_, printed = prepared(capsys, "coco", coco(tmp_path / "in", [boxes], size=(100, 100)), "--out", tmp_path / "out")
    assert "box sizes: small 1, medium 2, large 1; the median box" in printed


def test_pixels_where_fractions_are_expected_are_called_so(tmp_path, capsys):
    source = yolo(tmp_path / "in", "names: [cell]\n", {f"p{i}.png": "0 30 40 20 20\n" for i in range(3)})
    message = failure(capsys, "yolo", source, "--out", tmp_path / "out")
    assert "read as cx cy width height in fractions of the image, but look like pixels" in message
    assert "Divide them by the width and height of their image" in message and "--bbox-format" not in message


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


@pytest.mark.parametrize(("within", "stops"), [(19, True), (18, True), (17, False)])
def test_a_tenth_of_stray_boxes_does_not_excuse_fractions_given_as_pixels(tmp_path, capsys, within, stops):
    source = coco(tmp_path / "in", [[[0.1, 0.2, 0.5, 0.5]] * within + [[10, 10, 20, 20]] * (20 - within)])
    if stops:
        message = failure(capsys, "coco", source, "--out", tmp_path / "out")
        assert f"{within} of 20 boxes lie within one pixel" in message
    else:
        assert len(prepared(capsys, "coco", source, "--out", tmp_path / "out")[0]) == 1


@pytest.mark.parametrize(
    ("size", "box_xywh"),
    [((100, 80), [10, 10, 20, 75]), ((80, 100), [10, 10, 75, 20]), ((100, 80), [10, -2, 20, 20])],
    ids=["bottom", "right", "top"],
)
def test_each_edge_is_compared_with_the_side_along_its_own_axis(tmp_path, capsys, size, box_xywh):
    """2 % of the side may be rounding: 1.6 pixels of 80, 2 of 100."""
    message = failure(capsys, "coco", coco(tmp_path / "in", [[box_xywh] * 3], size), "--out", tmp_path / "out")
    assert "3 of 3 boxes are inverted or extend beyond their image" in message


def test_copied_images_lie_in_the_data_set_under_their_ids(tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    names = {"a/one.png": "a/one", "two.png": "two", "../far.png": "__/far", str(tmp_path / "abs" / "x.png"): None}
    entries = []
    for name in names:
        make_image(source / name)
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
        make_image(source / name)
    (source / "rows.csv").write_text("".join(f"{name},1,1,9,9,c\n" for name in ("a.png", "a.jpg", "b.png")))
    records, *_ = prepared(capsys, "csv", source, "--out", tmp_path / "out")
    assert sorted(records) == ["a.jpg", "a.png", "b"]
    for split in ("train", "val"):
        make_image(tmp_path / "two" / split / "a.png")
        (tmp_path / "two" / f"{split}.csv").write_text("a.png,1,1,9,9,c\n")
    records, *_ = prepared(capsys, "csv", tmp_path / "two", "--out", tmp_path / "out2")
    assert {name: record["image"] for name, record in records.items()} == {
        "train/a": str(tmp_path / "two" / "train" / "a.png"),
        "validation/a": str(tmp_path / "two" / "val" / "a.png"),
    }


def test_an_image_with_two_entries_is_an_error(tmp_path, capsys):
    make_image(tmp_path / "a.png")
    names = ["a.png", "./a.png", "/elsewhere/a.png"]
    objects = [{"class": "c", "bbox_aabb": [0, 0, 1, 1]}]
    (tmp_path / "l.json").write_text(json.dumps([{"image": name, "objects": objects} for name in names]))
    message = failure(capsys, "aabb", tmp_path, "--out", tmp_path / "out")
    assert "duplicate entry for a.png" in message and "elsewhere/a.png and a.png are the same image" in message


def test_an_existing_data_set_is_replaced_only_with_overwrite(tmp_path, capsys):
    out = tmp_path / "sets" / "out"
    prepared(capsys, "coco", coco(tmp_path / "a", [[[1, 1, 5, 5]]]), "--out", out, "--copy-images")
    more = coco(tmp_path / "b", [[[1, 1, 5, 5]]] * 3)
    assert "--overwrite" in failure(capsys, "coco", more, "--out", out)
    (more / "p2.png").unlink()
    failure(capsys, "coco", more, "--out", out, "--overwrite")
    assert len(list((out / "images").iterdir())) == 1
    (out / "images" / "p0.png").touch()
    assert f"is inside {out}" in failure(capsys, "coco", out / "images", "--out", out, "--overwrite")
    records, *_ = prepared(capsys, "coco", more, "--out", out, "--overwrite", "--skip-bad-images")
    assert len(records) == 2 and not (out / "images").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "other than a prepared dataset" in failure(capsys, "coco", more, "--out", tmp_path / "mine", "--overwrite")
    (out / "thesis.txt").touch()
    assert "thesis.txt" in failure(capsys, "coco", more, "--out", out, "--overwrite")


def test_a_data_set_inside_its_own_source_is_not_read_again(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 5, 5]]] * 2)
    for _ in range(2):
        args = ("coco", source, "--out", source / "out", "--copy-images", "--overwrite")
        assert len(prepared(capsys, *args)[0]) == 2
    source = yolo(tmp_path / "y", "train: .\nnames: [cat]\n", {"a.jpg": "0 0.5 0.5 0.2 0.5"})
    for _ in range(2):
        args = ("yolo", source, "--out", source / "out", "--copy-images", "--overwrite")
        assert list(prepared(capsys, *args)[0]) == ["a"]


def test_memory_hardly_grows_with_the_number_of_images(tmp_path, capsys):
    """Rows, boxes and records of forty boxes would take about 30 KB per image; its names take 1 KB."""
    rows = "".join(f"{i % 2} 0.{i + 10} 0.5 0.1 0.2\n" for i in range(40))
    peaks = {}
    for count in (2, 20, 100):  # the first one warms up
        files = dict.fromkeys((f"images/image_{i}.png" for i in range(count)), rows)
        source = yolo(tmp_path / f"in{count}", "names: [cat, dog]\ntrain: images\n", files)
        tracemalloc.start()
        main(["yolo", str(source), "--out", str(tmp_path / f"out{count}"), "--workers", "1"])
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[100] - peaks[20]) / 80 < 4096


def test_converting_loads_neither_torch_nor_datasets(tmp_path):
    source = coco(tmp_path / "in", [[[1, 1, 5, 5]]])
    code = (
        "import sys; from data_prep.__main__ import main; main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    command = [sys.executable, "-c", code, "coco", str(source), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_loads_no_library_for_arrays_or_images():
    code = (
        "import sys; from data_prep.command import build_parser; build_parser([]).format_help();"
        "assert not {'torch', 'numpy', 'PIL', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_words_run_as_a_function_what_the_command_would_run(tmp_path, capsys):
    source = coco(tmp_path / "in", [[[1, 1, 5, 5]]] * 3)
    options = ["--questions", "mixed", "--split-ratio", "50,50,0"]
    prepare_from_words(["auto", str(source), *options, "--out", str(tmp_path / "function" / "set")])
    main(["auto", str(source), *options, "--out", str(tmp_path / "command" / "set")])
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / way / "set").iterdir()} for way in ("function", "command")
    ]
    assert written[0] == written[1] and read_info(tmp_path / "function" / "set")["format"] == "coco"


def test_words_run_the_generator_of_product_images(tmp_path, capsys):
    prepare_from_words(["nutrition", "--num-images", "1", "--size", "224", "--out", str(tmp_path / "set")])
    assert read_info(tmp_path / "set")["format"] == "nutrition"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coco", "in"], "python -m data_prep coco: the following arguments are required: --out"),
        (["coco", "in", "--out", "o", "--colour", "red"], "python -m data_prep: unrecognized arguments: --colour red"),
        (["coco", "in", "--out", "o", "-h"], "unrecognized arguments: -h"),
        (["coco", "in", "--out", "o", "--split-ratio", "1"], "argument --split-ratio: '1': give three shares"),
        (["nutrition", "--num-images", "many"], "argument --num-images: invalid int value: 'many'"),
        (["picasa", "in", "--out", "o"], "has no command 'picasa'. Commands: voc, coco, "),
        (["vocc", "in", "--out", "o"], "has no command 'vocc'. Did you mean voc?"),
        ([], "the following arguments are required: COMMAND"),
        (["coco", "lost", "--out", "o"], "lost does not exist"),
        (["coco", "lost", "--out", "o", "--label-field", "kind"], "--label-field is read by via, "),
    ],
)
def test_words_that_do_not_fit_are_user_errors(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        prepare_from_words(words)
    assert message in str(caught.value) and not list(tmp_path.iterdir())
