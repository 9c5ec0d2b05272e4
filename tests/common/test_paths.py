"""Paths, files at any depth, and writing completely or not at all."""

import argparse
import os
from pathlib import Path

import pytest

from boxtune.common.files import (
    files_below,
    folder_problems,
    is_file_name,
    is_image,
    named,
    path_argument,
    replace_folder,
    write_whole,
)
from boxtune.common.json_lines import BadLine, read_json_lines, to_json_line


def test_an_empty_path_is_rejected():
    assert path_argument("a/b") == Path("a/b")
    for text in ("", "  "):
        with pytest.raises(argparse.ArgumentTypeError, match="the path is empty"):
            path_argument(text)


def test_the_current_folder_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert (named(".").name, named("..").name, named("x/..").name) == ("b", "a", "b")
    assert named("x/y") == Path("x/y")


def test_why_a_folder_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    assert folder_problems(tmp_path) == folder_problems(tmp_path / "new" / "one") == []
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert folder_problems(path) == [f"{tmp_path / 'file'} is a file; name a folder"]
    assert is_file_name("ä" * 127 + "x") and not is_file_name("ä" * 128)
    assert folder_problems(Path("a") / ("x" * 256)) == [f"'{'x' * 59} is too long for a file name"]


def test_images_are_known_by_their_suffix():
    assert is_image(Path("a.JPG")) and is_image(Path("b/a.webp"))
    assert not is_image(Path("a.txt")) and not is_image(Path("b/.a.jpg"))


def test_files_are_found_at_any_depth_in_order(tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a.txt", ".hidden/x.txt", "c/.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "loop").symlink_to(tmp_path)
    (tmp_path / "other" / "again").symlink_to(tmp_path / "b")
    (tmp_path / "other" / "broken").symlink_to(tmp_path / "gone")
    found = [str(path.relative_to(tmp_path)) for path in files_below(tmp_path)]
    assert found == [
        *("a.txt", "b/10.txt", "b/2.txt", "c/.x"),
        *("other/again/10.txt", "other/again/2.txt", "other/broken"),
    ]


def test_a_file_is_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "ä \ud83d")
    assert path.read_text(encoding="utf-8") == "ä \\ud83d" and os.listdir(path.parent) == ["a.txt"]

    def fail(source, target):
        raise OSError(28, "No space left on device", source, None, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError) as error:
        write_whole(path, "other")
    assert (error.value.filename, error.value.filename2) == (str(path), None)
    assert path.read_text(encoding="utf-8") == "ä \\ud83d" and os.listdir(path.parent) == ["a.txt"]


def folder_with(path: Path, name: str) -> Path:
    path.mkdir()
    (path / name).write_text("")
    return path


def test_a_folder_is_replaced_or_left_as_it_was(tmp_path, monkeypatch):
    whole, folder = folder_with(tmp_path / "whole", "1"), tmp_path / "folder"
    replace_folder(whole, folder)
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(folder) == ["1"]
    replace_folder(folder_with(whole, "2"), folder)
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(folder) == ["2"]
    (tmp_path / "link").symlink_to(folder)
    replace_folder(folder_with(whole, "3"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and os.listdir(folder) == ["3"]

    folder_with(whole, "4")
    rename = os.rename

    def fail_for_the_new_one(source, target):
        if Path(source) == whole:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(whole, folder)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "whole"] and os.listdir(folder) == ["3"]


def test_lines_are_numbered_and_bad_ones_are_kept_apart(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n[2]\n{"a":\n"\xff"\n' + b"[" * 100_000 + b"\n")
    (first, one), (second, two), (third, bad), (fourth, replaced), (fifth, deep) = read_json_lines(path)
    assert (first, second, third, fourth, fifth) == (1, 4, 5, 6, 7)
    assert (one, two, replaced) == ({"a": 1}, [2], "\ufffd")
    assert (
        isinstance(bad, BadLine) and bad.problem.startswith("not JSON (Expecting value") and isinstance(deep, BadLine)
    )


def test_a_line_has_no_nan_and_keeps_its_letters():
    assert to_json_line({"a": "ä", "b": 0.5}) == '{"a": "ä", "b": 0.5}\n'
    with pytest.raises(ValueError, match="JSON"):
        to_json_line([float("inf")])
