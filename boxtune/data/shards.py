"""Shards: the training split of a prepared dataset in tar archives, for more images than fit into memory or as single files.

Each archive holds a random part of the images. It can be read by WebDataset: KEY.json is a record, KEY.jpg (or another suffix)
its image. dataset.json names the number of images in each archive:

    "shards": {"train": {"images": [1000, 1000, 250], "sha256": ["…", "…", "…"]}}
"""

import hashlib
import io
import json
import random
import shutil
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError
from boxtune.common.json_lines import to_json_line
from boxtune.data.archives import read_member
from boxtune.data.dataset import new_dataset, read_info, read_records, write_info, write_split
from boxtune.data.record_checks import record_problems
from boxtune.data.records import Record, image_path, with_absolute_image

SHARDED = "train"


class Shards:
    """The training records of a sharded dataset, each read from its archive when it is used. `len(shards)`, `shards[i]`.

    images: number of images in each archive. The records name their images by paths into the archives.
    """

    def __init__(self, directory: Path, images: list[int]):
        self.directory = Path(directory)
        self.images = images
        self.ends = list(accumulate(images))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> Record:
        """Raises UserError if the archive or the record cannot be read."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        path = self.directory / archive_name(bisect_right(self.ends, number)) / f"{number:09d}.json"
        try:
            record: Record = json.loads(read_member(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}). Write the shards again.") from None
        if problems := record_problems(record):
            raise UserError(f"{path} is not a valid record. Write the shards again:", problems)
        return record

    def order(self, seed: int, epoch: int) -> Iterator[int]:
        """Every number once, in a random order that reads one archive after the other."""
        draw = random.Random(f"{seed} {epoch} shards")
        for shard in draw.sample(range(len(self.images)), len(self.images)):
            end, count = self.ends[shard], self.images[shard]
            yield from draw.sample(range(end - count, end), count)


def archive_name(number: int) -> str:
    return f"{SHARDED}-{number:06d}.tar"


def read_shards(directory: Path) -> Shards | None:
    """The training records of `directory` if they are in shards; None if they are in train.jsonl.

    Raises UserError if dataset.json does not describe the archives, or if archives are missing.
    """
    described: Any = read_info(directory).get("shards", {}).get(SHARDED)
    if described is None:
        return None
    images = described.get("images") if isinstance(described, dict) else None
    if not isinstance(images, list) or not images or not all(type(count) is int and count > 0 for count in images):
        raise UserError(
            f"{directory}/dataset.json: shards: {SHARDED} must list the number of images of each archive. Write the shards again."
        )
    paths = [Path(directory) / archive_name(number) for number in range(len(images))]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{len(missing)} of {len(paths)} archives are missing. Write the shards again:", missing)
    return Shards(directory, images)


# ---- Writing -------------------------------------------------------------------------------------------------------------


def write_shards(source: Path, target: Path, images_per_shard: int, seed: int, overwrite: bool = False) -> Shards:
    """Write the prepared dataset `source` to `target` with its training images in shards, completely or not at all.

    Each image is in a random archive. Image files are copied unchanged. The other splits name their images by absolute paths.
    Raises UserError listing every record or image that cannot be read.
    """
    info = read_info(source)
    with new_dataset(target, overwrite) as temporary:
        images = _write_archives(source, temporary, images_per_shard, seed)
        for split in info["splits"].keys() - {SHARDED}:
            records = (with_absolute_image(record, source) for record in read_records(source, split))
            write_split(temporary / f"{split}.jsonl", records)
        digests = [_digest(temporary / archive_name(number)) for number in range(len(images))]
        write_info(temporary, info | {"shards": {SHARDED: {"images": images, "sha256": digests}}})
        if (problems := Path(source) / "problems.jsonl").is_file():
            shutil.copyfile(problems, temporary / problems.name)
    return Shards(target, images)


def _write_archives(source: Path, folder: Path, images_per_shard: int, seed: int) -> list[int]:
    """The number of images in each archive. Of the records, only their places in train.jsonl are kept in memory."""
    path = Path(source) / f"{SHARDED}.jsonl"
    if not path.is_file():
        raise UserError(f"{source} has no {SHARDED}.jsonl, so there is nothing to write into shards.")
    with open(path, "rb") as lines:
        places = _line_places(lines)
        random.Random(seed).shuffle(places)
        starts = range(0, len(places), images_per_shard)
        problems: list[str] = []
        for number, start in enumerate(starts):
            with tarfile.open(folder / archive_name(number), "w") as archive:
                for key, place in enumerate(places[start : start + images_per_shard], start):
                    lines.seek(place)
                    problems += _add(archive, key, lines.readline(), source)
    if problems:
        raise UserError(
            f"{source}: {len(problems)} problem(s), so nothing was written. Prepare the data again:", problems
        )
    return [min(images_per_shard, len(places) - start) for start in starts]


def _line_places(lines: io.BufferedReader) -> "array[int]":
    """Where each line that is not empty begins."""
    places, place = array("Q"), 0
    for line in lines:
        if line.strip():
            places.append(place)
        place += len(line)
    return places


def _add(archive: tarfile.TarFile, key: int, line: bytes, source: Path) -> list[str]:
    """Add a record and its image. Returns what is wrong with them."""
    try:
        record = json.loads(line)
    except ValueError as error:
        return [f"{line[:60]!r}: {error}"]
    if problems := record_problems(record):
        return [f"{line[:60]!r}: {problem}" for problem in problems]
    image = image_path(record, source)
    try:
        content = image.read_bytes()
    except OSError as error:
        return [f"{record['id']}: {error}"]
    name = f"{key:09d}{image.suffix.lower()}"
    in_archive = record | {"image": f"{Path(str(archive.name)).name}/{name}"}
    _add_file(archive, f"{key:09d}.json", to_json_line(in_archive).encode())
    _add_file(archive, name, content)
    return []


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
