"""Compressed files in place of text files: named as such, wherever annotations, records and predictions are read."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

import evaluate
from boxtune.common.errors import UserError
from boxtune.common.files import check_is_text
from boxtune.common.json_lines import read_json_lines
from boxtune.data.dataset import read_records, write_dataset
from data_prep.__main__ import main as data_prep
from tests.helpers.predictions import cat_prediction
from tests.helpers.records import make_record
from tests.helpers.sources import failure


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", data)
    return file.getvalue()


LINE = (json.dumps(cat_prediction()) + "\n").encode()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (gzip.compress, "is compressed (gzip). Unpack it first: gunzip"),
        (bz2.compress, "is compressed (bzip2)"),
        (lzma.compress, "is compressed (xz)"),
        (zipped, "is compressed (zip)"),
        (lambda data: data.decode().encode("utf-16"), "is UTF-16 text. Save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_named_by_its_kind(tmp_path, write, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(write(LINE))
    with pytest.raises(UserError) as error:
        list(read_json_lines(path))
    assert str(error.value).startswith(f"{path} {message}") and len(str(error.value)) < len(str(path)) + 80


@pytest.mark.parametrize("data", [b"", b"{", LINE, b"\xef\xbb\xbf{}", b"P", b"BZ"])
def test_other_files_are_left_to_their_reader(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    check_is_text(tmp_path / "a")


def test_gzipped_predictions_and_records_give_one_line(tmp_path, capsys):
    record = make_record("a", "a.png", 640, 480, [([128, 48, 256, 96], "cat")])
    write_dataset(tmp_path / "d", name="d", source_format="t", classes=["cat"], splits={"test": [record]}, problems=[])
    (tmp_path / "p.jsonl").write_bytes(gzip.compress(LINE * 20_000, compresslevel=0))
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--predictions", str(tmp_path / "p.jsonl"), "--data", str(tmp_path / "d")])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "p.jsonl is compressed (gzip)" in message and message.count("\n") == 1
    for name in ("test.jsonl", "dataset.json"):
        path = tmp_path / "d" / name
        path.write_bytes(gzip.compress(path.read_bytes()))
        with pytest.raises(UserError, match=rf"{name} is compressed \(gzip\)"):
            read_records(tmp_path / "d", "test")


@pytest.mark.parametrize(
    ("name", "format_name"),
    [("a.json", "coco"), ("a.jsonl", "jsonl"), ("a.csv", "csv"), ("annotations.xml", "cvat"), ("a.json", "auto"),
     ("a.xml", "auto"), ("a.json.gz", "auto")],
)  # fmt: skip
def test_gzipped_annotations_are_named(tmp_path, capsys, name, format_name):
    source = tmp_path / name
    source.write_bytes(gzip.compress(b'{"images": [], "annotations": [], "categories": []}'))
    message = failure(capsys, format_name, source, "--out", tmp_path / "out")
    assert f"{name} is compressed (gzip). Unpack it first: gunzip" in message and message.count("\n") <= 2


def test_one_gzipped_file_among_voc_annotations_is_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.xml").write_bytes(gzip.compress(b"<annotation/>"))
    with pytest.raises(SystemExit):
        data_prep(["voc", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "a.xml is compressed (gzip)" in capsys.readouterr().err
