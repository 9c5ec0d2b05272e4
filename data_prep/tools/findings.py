"""What is worth knowing of a prepared data set before training on it: objects too small for a pixel budget, boxes and
pictures that stand twice, and class names that look alike."""

import itertools
import os
import re
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from boxtune.common.errors import UserError
from boxtune.data.boxes import box_iou
from boxtune.data.images import to_rgb
from boxtune.data.records import Record, image_path
from boxtune.families.family import Family

DUPLICATE_IOU = 0.9
ALIKE_BITS = 4  # of a 64-bit hash; two photographs of one motif differ in some 20
KEPT = 0.99  # the share of objects that a proposed budget must keep


# ---- sizes -----------------------------------------------------------------------------------------------------------


def shorter_sides(records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """((N,) shorter sides of all objects, (N,) areas of their pictures), in pixels of the pictures."""
    sides, areas = [], []
    for record in records:
        for x0, y0, x1, y1 in record["objects"]["bbox"]:
            sides.append(min(x1 - x0, y1 - y0))
            areas.append(record["width"] * record["height"])
    return np.array(sides, dtype=np.float64), np.array(areas, dtype=np.float64)


def scale_at(areas: np.ndarray, max_pixels: float) -> np.ndarray:
    """By how much pictures of these areas shrink; they are never enlarged beyond their own size by a greater budget."""
    return np.sqrt(np.minimum(1.0, max_pixels / areas))


def too_small(records: list[Record], family: Family, max_pixels: int) -> np.ndarray:
    """(N,) which objects are thinner than one patch once their picture is resized to the budget."""
    sides, areas = shorter_sides(records)
    return sides * scale_at(areas, max_pixels) < family.patch_size


def keeping_budget(records: list[Record], family: Family) -> int | None:
    """The smallest max_pixels at which 99 % of the objects that the pictures resolve at all are a patch thick, as a
    multiple of a token's area; None where there is no such object."""
    sides, areas = shorter_sides(records)
    resolved = sides >= family.patch_size
    if not resolved.any():
        return None
    needed = areas[resolved] * (family.patch_size / sides[resolved]) ** 2
    token = family.factor**2
    return int(np.ceil(np.quantile(needed, KEPT, method="higher") / token) * token)


def image_tokens(records: list[Record], family: Family, max_pixels: int) -> np.ndarray:
    """(N,) how many tokens each picture takes, rounding of the sides apart."""
    areas = np.array([record["width"] * record["height"] for record in records], dtype=np.float64)
    return np.minimum(areas, max_pixels) / family.factor**2


# ---- twice -----------------------------------------------------------------------------------------------------------


def duplicate_boxes(records: list[Record]) -> list[tuple[str, str, float]]:
    """(id, class, IoU) of every two boxes of one class in one picture that are almost the same."""
    found = []
    for record in records:
        boxes, labels = record["objects"]["bbox"], record["objects"]["category"]
        if len(boxes) < 2:
            continue
        overlap = np.triu(box_iou(boxes, boxes), k=1)
        for i, j in np.argwhere(overlap >= DUPLICATE_IOU):
            if labels[i] == labels[j]:
                found.append((record["id"], labels[i], float(overlap[i, j])))
    return found


def image_hash(path: Path) -> int | None:
    """64 bits: whether each cell of an 8 × 9 grey thumbnail is darker than its right neighbour (Krawetz's dHash).

    None where the picture cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # a JPEG is decoded at an eighth of its size
            grey = to_rgb(ImageOps.exif_transpose(image)).convert("L").resize((9, 8), Image.Resampling.BOX)
    except Exception:  # decoders raise whatever they like on torn files
        return None
    cells = np.asarray(grey, dtype=np.int16)
    return int("".join("1" if darker else "0" for darker in (cells[:, :-1] < cells[:, 1:]).ravel()), 2)


def similar_images(
    splits: dict[str, list[Record]], directory: Path, most: int
) -> tuple[int, int, list[tuple[str, str]]]:
    """(how many pairs of pictures look the same, how many of them lie in two splits, the ids of `most` pairs, those in two
    splits first). Plain pictures, whose hash says nothing, are left out.

    Raises UserError that lists the pictures that cannot be read.
    """
    records = [record for members in splits.values() for record in members]
    split_of = np.repeat(np.arange(len(splits)), [len(members) for members in splits.values()])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [image_path(record, directory) for record in records]
        hashes = list(tqdm(pool.map(image_hash, paths), total=len(paths), desc="pictures", unit="", disable=None))
    pairs = zip(records, paths, hashes, strict=True)
    if torn := [f"{record['id']}: {path}" for record, path, found in pairs if found is None]:
        raise UserError(f"{len(torn)} picture(s) cannot be read. Prepare the data again:", torn)
    codes = np.array(hashes, dtype=np.uint64)
    told = np.bitwise_count(codes) > ALIKE_BITS
    found, across, examples, apart_examples = 0, 0, [], []
    for i in np.flatnonzero(told[:-1]):
        near = (np.bitwise_count(codes[i + 1 :] ^ codes[i]) <= ALIKE_BITS) & told[i + 1 :]
        apart = near & (split_of[i + 1 :] != split_of[i])
        found, across = found + int(near.sum()), across + int(apart.sum())
        for which, listed in ((apart, apart_examples), (near & ~apart, examples)):
            others = i + 1 + np.flatnonzero(which)[: most - len(listed)]
            listed += [(records[i]["id"], records[j]["id"]) for j in others]
    return found, across, (apart_examples + examples)[:most]


def alike_names(classes: list[str]) -> list[tuple[str, str]]:
    """Class names that differ in case, spacing, a plural's s, a letter of several, or two that changed places."""
    return [(a, b) for a, b in itertools.combinations(classes, 2) if _alike(a, b)]


def _alike(a: str, b: str) -> bool:
    a, b = (re.sub(r"[\s_-]+", "", name.casefold()) for name in (a, b))
    if a.rstrip("s") == b.rstrip("s"):
        return True
    # Numbers and letters at the end tell classes apart on purpose: "part 1", "part 2", "grade A".
    if a[:-1] == b[:-1] or re.sub(r"\d+", "", a) == re.sub(r"\d+", "", b):
        return False
    swapped = sorted(a) == sorted(b)
    return min(len(a), len(b)) >= 5 and (swapped or SequenceMatcher(None, a, b).ratio() >= 0.85)
