"""data_prep: whatever the source holds, a mistake ends with one message and exit code 2, and leaves nothing behind."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from data_prep_sources import failure, yolo

from data_prep.__main__ import main


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
