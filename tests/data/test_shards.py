"""Training records in tar archives."""

import json
import os
import tarfile
from itertools import pairwise

import pytest

from boxtune.common.errors import UserError
from boxtune.data.archives import is_member, read_member
from boxtune.data.dataset import data_hash, read_info, read_records
from boxtune.data.images import load_image
from boxtune.data.records import image_path, with_absolute_image
from boxtune.data.shards import read_shards, write_shards
from data_prep.command import prepare_from_words


@pytest.fixture(scope="module")
def sharded(squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("sharded") / "data"
    prepare_from_words(["shards", str(squares), "--out", str(out), "--images-per-shard", "7"])
    return out


def test_shards_hold_every_record_and_image_once(squares, sharded):
    records, shards = read_records(squares, "train"), read_shards(sharded)
    assert len(shards) == len(records) and shards.images[:-1] == [7] * (len(shards.images) - 1)
    read = {shards[number]["id"]: shards[number] for number in range(len(shards))}
    assert [*read] != [record["id"] for record in records], "archives are random"
    for record in records:
        found = read[record["id"]]
        assert found | {"image": record["image"]} == record
        path = image_path(found, sharded)
        assert is_member(path) and read_member(path) == image_path(record, squares).read_bytes()
        assert load_image(path).tobytes() == load_image(image_path(record, squares)).tobytes()


def test_other_splits_stay_as_they_are(squares, sharded):
    assert read_records(sharded, "test") == [
        with_absolute_image(record, squares) for record in read_records(squares, "test")
    ]
    assert read_info(sharded)["splits"] == read_info(squares)["splits"]
    assert read_shards(squares) is None
    with pytest.raises(UserError, match="has its split 'train' in shards"):
        read_records(sharded, "train")


def test_archives_are_those_of_webdataset(sharded):
    """Files of one example share their name up to the first dot and follow each other."""
    with tarfile.open(sharded / "train-000000.tar") as archive:
        names = [member.name for member in archive]
    assert len(names) == 14
    assert [name.split(".")[0] for name in names[::2]] == [name.split(".")[0] for name in names[1::2]]
    assert {os.path.splitext(name)[1] for name in names[::2]} == {".json"}
    datasets = pytest.importorskip("datasets")
    rows = list(datasets.load_dataset("webdataset", data_files=str(sharded / "*.tar"), split="train", streaming=True))
    assert {row["json"]["id"] for row in rows} == {shard["id"] for shard in all_of(sharded)}


def all_of(sharded):
    shards = read_shards(sharded)
    return [shards[number] for number in range(len(shards))]


def test_each_epoch_has_its_own_order_by_archive(sharded):
    shards = read_shards(sharded)
    first, again, second = (list(shards.order(0, epoch)) for epoch in (0, 0, 1))
    assert first == again != second and sorted(first) == sorted(second) == list(range(len(shards)))
    archives = [number // 7 for number in first]
    changes = sum(before != after for before, after in pairwise(archives))
    assert changes == len(shards.images) - 1


def test_the_same_input_gives_the_same_bytes(squares, sharded, tmp_path):
    write_shards(squares, tmp_path / "again", 7, seed=0)
    write_shards(squares, tmp_path / "other", 7, seed=1)
    for path in sharded.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert data_hash(sharded) == data_hash(tmp_path / "again") != data_hash(tmp_path / "other")


def test_bad_records_and_images_are_listed_and_nothing_is_written(squares, tmp_path):
    source = tmp_path / "source"
    write_shards(squares, tmp_path / "kept", 100, seed=0)
    lines = [with_absolute_image(record, squares) for record in read_records(squares, "train")]
    source.mkdir()
    lines[0]["image"] = "absent.png"
    lines[1]["width"] = "wide"
    (source / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
    (source / "dataset.json").write_text((squares / "dataset.json").read_text())
    with pytest.raises(UserError, match="3 problem"):
        write_shards(source, tmp_path / "kept", 100, seed=0, overwrite=True)
    assert len(read_shards(tmp_path / "kept")) == len(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "source"]


def test_missing_and_corrupt_archives_are_named(squares, tmp_path):
    out = tmp_path / "data"
    write_shards(squares, out, 7, seed=0)
    (out / "train-000001.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"train-000001.tar/000000007.json cannot be read .*corrupt"):
        read_shards(out)[7]
    (out / "train-000000.tar").unlink()
    with pytest.raises(UserError, match="1 of 3 archives are missing"):
        read_shards(out)
    with pytest.raises(UserError, match="holds something other"):
        (out / "notes.txt").write_text("mine")
        write_shards(squares, out, 7, seed=0, overwrite=True)
