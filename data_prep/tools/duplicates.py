"""Boxes, images and class names of a dataset that occur twice, exactly or nearly."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from boxtune.common.errors import UserError
from boxtune.data.boxes import box_iou
from boxtune.data.images import to_rgb
from boxtune.data.records import Record, image_path

_DUPLICATE_IOU = 0.9
# Similar images differ in at most so many of the 64 bits of their hashes; unrelated photos of one subject differ in about 20.
_MAX_HASH_DISTANCE = 4


class DuplicateBox(NamedTuple):
    """Two nearly identical boxes of one class in the image `id`."""

    id: str
    category: str
    iou: float


class SimilarImages(NamedTuple):
    """The number of pairs of images that look the same, how many of those are in different splits, and pairs of ids."""

    pairs: int
    across_splits: int
    examples: list[tuple[str, str]]


def duplicate_boxes(records: list[Record]) -> list[DuplicateBox]:
    found = []
    for record in records:
        boxes_xyxy, labels = record["objects"]["bbox"], record["objects"]["category"]
        if len(boxes_xyxy) < 2:
            continue
        overlap = np.triu(box_iou(boxes_xyxy, boxes_xyxy), k=1)
        for i, j in np.argwhere(overlap >= _DUPLICATE_IOU):
            if labels[i] == labels[j]:
                found.append(DuplicateBox(record["id"], labels[i], float(overlap[i, j])))
    return found


def image_hash(path: Path) -> int | None:
    """A 64-bit difference hash (Krawetz's dHash), or None if the image cannot be read.

    Each bit is set if a pixel of a 9 × 8 gray thumbnail is darker than its right neighbor.
    """
    try:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # decodes a JPEG at an eighth of its size
            gray = to_rgb(ImageOps.exif_transpose(image)).convert("L").resize((9, 8), Image.Resampling.BOX)
    except Exception:  # decoders raise any exception on corrupt files; the caller reports the file
        return None
    cells = np.asarray(gray, dtype=np.int16)
    bits = (cells[:, :-1] < cells[:, 1:]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def similar_images(splits: dict[str, list[Record]], data_dir: Path, max_examples: int) -> SimilarImages:
    """All pairs of images that look the same. Examples in different splits come first.

    Images without structure, which all have nearly the same hash, are left out. Raises UserError listing the images that
    cannot be read.
    """
    records = [record for members in splits.values() for record in members]
    split_of = np.repeat(np.arange(len(splits)), [len(members) for members in splits.values()])
    codes = _image_hashes(records, data_dir)
    structured = np.bitwise_count(codes) > _MAX_HASH_DISTANCE
    pairs = across_splits = 0
    across_examples: list[tuple[str, str]] = []
    within_examples: list[tuple[str, str]] = []
    for i in np.flatnonzero(structured[:-1]):
        later = slice(i + 1, None)
        similar = (np.bitwise_count(codes[later] ^ codes[i]) <= _MAX_HASH_DISTANCE) & structured[later]
        across = similar & (split_of[later] != split_of[i])
        pairs += int(similar.sum())
        across_splits += int(across.sum())
        for selected, examples in ((across, across_examples), (similar & ~across, within_examples)):
            others = i + 1 + np.flatnonzero(selected)[: max_examples - len(examples)]
            examples += [(records[i]["id"], records[j]["id"]) for j in others]
    return SimilarImages(pairs, across_splits, (across_examples + within_examples)[:max_examples])


def _image_hashes(records: list[Record], data_dir: Path) -> np.ndarray:
    """(N,) uint64. Raises UserError listing the images that cannot be read."""
    paths = [image_path(record, data_dir) for record in records]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = list(tqdm(pool.map(image_hash, paths), total=len(paths), desc="images", unit="", disable=None))
    unreadable = [
        f"{record['id']}: {path}" for record, path, code in zip(records, paths, hashes, strict=True) if code is None
    ]
    if unreadable:
        raise UserError(f"{len(unreadable)} image(s) cannot be read. Prepare the data again:", unreadable)
    return np.array(hashes, dtype=np.uint64)


def similar_names(classes: list[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ only in case, spacing, a plural's s, or by a likely typing error."""
    return [(a, b) for a, b in itertools.combinations(classes, 2) if _are_similar(a, b)]


def _are_similar(a: str, b: str) -> bool:
    a, b = (re.sub(r"[\s_-]+", "", name.casefold()) for name in (a, b))
    if a.rstrip("s") == b.rstrip("s"):
        return True
    # Names such as "part 1" and "part 2", or "grade A" and "grade B", differ on purpose.
    if a[:-1] == b[:-1] or re.sub(r"\d+", "", a) == re.sub(r"\d+", "", b):
        return False
    is_transposed = sorted(a) == sorted(b)
    return min(len(a), len(b)) >= 5 and (is_transposed or SequenceMatcher(None, a, b).ratio() >= 0.85)
