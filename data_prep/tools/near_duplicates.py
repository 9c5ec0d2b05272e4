"""Images that are the same photo as another one, in another exposure, size or compression.

Images of one scene are no copies of each other: frames of a fixed camera, boards, receipts, pages. In a copy, nothing has
moved. So each image is predicted from the other one by linear regression, as the same scene with another tone curve,
lighting and a small movement of the camera. If they are copies, the residual is noise; an object that is in only one of
them remains as a peak.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from tqdm import tqdm

from boxtune.common.errors import UserError
from boxtune.data.images import to_rgb
from boxtune.data.records import Record, image_path

# Sides of the thumbnails, in cells. The coarse ones find candidates and the movement, the fine ones decide.
_COARSE, _FINE = 32, 96
# Images whose gray values (0…255) have a smaller standard deviation have too little structure to compare.
_MIN_CONTRAST = 2.0
# Candidates have at least this correlation, and at most this RMS residual. Each image is compared with the nearest ones only.
_MIN_CORRELATION, _MAX_COARSE_RESIDUAL, _MAX_CANDIDATES = 0.7, 0.25, 32
# Residuals are in standard deviations of the image's gray values, less at edges. A copy has no cell with a larger residual,
# and none that exceeds the residuals of nearly all others so far.
_MAX_RESIDUAL, _MAX_PEAK, _NOISE = 1.5, 6.0, 0.06
# If an image has several matches, such as receipts on one dark table, their residual must be smaller than this, or the next
# one must be this many times larger.
_MAX_SHARED_RESIDUAL, _OUTSTANDING = 0.3, 1.5
# In a series that hardly changes, all images are nearly equal. Only this many matches of an image can be copies, and only if
# the next one's residual is larger in the same way. Matches with nearly no residual always are copies.
_MAX_MATCHES, _NO_RESIDUAL = 2, 0.005


class Matches(NamedTuple):
    """Indices of images: pairs of copies, and images that match several others without standing out."""

    pairs: list[tuple[int, int]]
    series: list[int]


class SimilarImages(NamedTuple):
    """Number of pairs that look like the same photo, how many of them are in different splits, and pairs of ids.

    `series` counts the images that look like several others, as frames of a fixed camera do; they are in no pair.
    """

    pairs: int
    across_splits: int
    series: int
    examples: list[tuple[str, str]]


def similar_images(splits: dict[str, list[Record]], data_dir: Path, max_examples: int) -> SimilarImages:
    """Examples in different splits come first. Raises UserError listing the images that cannot be read."""
    records = [record for members in splits.values() for record in members]
    split_of = np.repeat(np.arange(len(splits)), [len(members) for members in splits.values()])
    matches = find_copies(_thumbnails(records, data_dir))
    across = [pair for pair in matches.pairs if split_of[pair[0]] != split_of[pair[1]]]
    ordered = [*across, *sorted({*matches.pairs} - {*across})]
    examples = [(records[i]["id"], records[j]["id"]) for i, j in ordered[:max_examples]]
    return SimilarImages(len(matches.pairs), len(across), len(matches.series), examples)


def find_copies(thumbnails: np.ndarray) -> Matches:
    """thumbnails: (N, 96, 96) gray values."""
    numbers = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= _MIN_CONTRAST)
    fine = _standardized(thumbnails[numbers])
    small = [Image.fromarray(image).resize((_COARSE, _COARSE), Image.Resampling.BILINEAR) for image in fine]
    coarse = _standardized(np.array([np.asarray(image) for image in small]).reshape(-1, _COARSE, _COARSE))
    edges = np.array([_edges(image) for image in fine]).reshape(fine.shape)
    residuals: dict[tuple[int, int], float] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        candidates = _nearest(pool.map(lambda i: _coarse_residuals(coarse, i), range(len(numbers))), len(numbers))
        compared = pool.map(lambda i: _residuals(coarse, fine, edges, i, candidates[i]), range(len(numbers)))
        for i, (others, values) in enumerate(zip(candidates, compared, strict=True)):
            for j, residual in zip(others.tolist(), values.tolist(), strict=True):
                pair = (min(i, j), max(i, j))
                residuals[pair] = max(residual, residuals.get(pair, 0.0))  # each predicts the other
    matches = _outstanding({pair: residual for pair, residual in residuals.items() if residual < np.inf})
    return Matches(
        sorted((int(numbers[i]), int(numbers[j])) for i, j in matches.pairs), [int(numbers[i]) for i in matches.series]
    )


def _outstanding(residuals: dict[tuple[int, int], float]) -> Matches:
    """Leaves out the matches of a series, in which an image has many that are equally near."""
    of_image: dict[int, list[float]] = defaultdict(list)
    for pair, residual in residuals.items():
        for i in pair:
            of_image[i].append(residual)
    limits = {}
    for i, values in of_image.items():
        values.sort()
        limits[i] = max(_MAX_SHARED_RESIDUAL, values[1] / _OUTSTANDING) if len(values) > 1 else np.inf
        if len(values) > _MAX_MATCHES:
            limits[i] = min(limits[i], values[_MAX_MATCHES] / _OUTSTANDING)
    pairs = [
        (i, j) for (i, j), residual in residuals.items() if residual < max(_NO_RESIDUAL, min(limits[i], limits[j]))
    ]
    crowded = {i for i, values in of_image.items() if len(values) > _MAX_MATCHES}
    return Matches(pairs, sorted(crowded - {i for pair in pairs for i in pair}))


def _nearest(residuals: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    """For each image, the other ones that explain it best. `residuals` is what each image leaves unexplained of all others.

    The reverse, those that an image explains best, would be the ones of least contrast, whatever the image.
    """
    nearest = np.full((count, _MAX_CANDIDATES), -1)
    smallest = np.full((count, _MAX_CANDIDATES), _MAX_COARSE_RESIDUAL)
    for i, residual in enumerate(residuals):
        largest = smallest.argmax(axis=1)
        explained = np.flatnonzero(residual < smallest[np.arange(count), largest])
        smallest[explained, largest[explained]] = residual[explained]
        nearest[explained, largest[explained]] = i
    return [row[row >= 0] for row in nearest]


def _coarse_residuals(coarse: np.ndarray, i: int) -> np.ndarray:
    """(N,): what image i leaves unexplained of each image; inf for itself and for images of other content."""
    correlation = np.tensordot(coarse, coarse[i], axes=2) / _COARSE**2
    correlation[i] = 0
    others = np.flatnonzero(correlation >= _MIN_CORRELATION)
    inner = _inner(coarse[others])
    basis = np.linalg.qr(_columns(coarse[i]))[0]
    residual = np.full(len(coarse), np.inf)
    residual[others] = np.sqrt(np.maximum(1 - ((inner @ basis) ** 2).sum(axis=1) / (inner**2).sum(axis=1), 0))
    return residual


def _residuals(coarse: np.ndarray, fine: np.ndarray, edges: np.ndarray, i: int, others: np.ndarray) -> np.ndarray:
    """The largest residual of a cell, for each of the others, predicted from image i; inf for no copies."""
    if not others.size:
        return np.empty(0)
    coefficients = np.linalg.lstsq(_columns(coarse[i]), _inner(coarse[others]).T, rcond=None)[0].T
    aligned = np.array([_aligned(fine[j], values) for j, values in zip(others, coefficients, strict=True)])
    inner = _inner(aligned)
    basis = np.linalg.qr(_columns(fine[i]))[0]
    # At an edge that both images have, a copy differs too: the cells there mix other shares of dark and bright.
    size = np.abs(inner - (inner @ basis) @ basis.T) / (1 + _inner(np.minimum(edges[others], edges[i])))
    bulk = int(size.shape[1] * 0.95)
    typical = np.partition(size, bulk, axis=1)[:, bulk]
    largest = size.max(axis=1)
    return np.where(largest < np.minimum(_MAX_RESIDUAL, _MAX_PEAK * typical + _NOISE), largest, np.inf)


def _edges(image: np.ndarray) -> np.ndarray:
    """The steepest gradient among each cell and its neighbors."""
    steepness = Image.fromarray(np.hypot(*np.gradient(image)))
    return np.asarray(steepness.filter(ImageFilter.MaxFilter(3)))


def _columns(image: np.ndarray) -> np.ndarray:
    """(cells, 14): what a copy of a standardized image consists of.

    A cubic tone curve; light that varies across the image; and the image's change if it moves, turns or is scaled a little.
    """
    dy, dx = np.gradient(image)
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j].astype(np.float32)
    tone, light = [np.ones_like(image), image, image**2, image**3], [x, y, image * x, image * y]
    movement = [dx, dy, dx * x, dx * y, dy * x, dy * y]
    return _inner(np.array([*tone, *light, *movement])).T


def _aligned(image: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """A fine thumbnail moved as the last six coefficients of the coarse fit say."""
    if coefficients[1] < 0.2:  # without a tone curve that rises, the movement is undefined
        return image
    shift_x, shift_y, xx, xy, yx, yy = np.clip(coefficients[8:] / coefficients[1], -1.5, 1.5) * (_FINE / _COARSE)
    if max(map(abs, (shift_x, shift_y, xx, xy, yx, yy))) < 0.3:  # in fine cells; the fine fit corrects the rest
        return image
    half = (_FINE - 1) / 2
    a, b, d, e = 1 - xx / half, -xy / half, -yx / half, 1 - yy / half
    # Pillow's coordinates are those of corners: cell 0 is centered at 0.5.
    matrix = (a, b, xx + xy - shift_x + 0.5 * (1 - a - b), d, e, yx + yy - shift_y + 0.5 * (1 - d - e))
    moved = Image.fromarray(image).transform(
        image.shape[::-1], Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    return np.asarray(moved)


def _inner(images: np.ndarray) -> np.ndarray:
    """(N, cells): each image flattened without its margin, which a movement may bring in or out."""
    margin = images.shape[-1] // 24
    inner = images[:, margin:-margin, margin:-margin]
    return inner.reshape(len(inner), inner.shape[1] * inner.shape[2])


def _standardized(images: np.ndarray) -> np.ndarray:
    images = images.astype(np.float32)
    images -= images.mean(axis=(1, 2), keepdims=True)
    images /= images.std(axis=(1, 2), keepdims=True) + 1e-6
    return images


def thumbnail(path: Path) -> np.ndarray | None:
    """(96, 96) gray values of the upright image, whatever its aspect ratio; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("L", (2 * _FINE, 2 * _FINE))  # decodes a JPEG at up to an eighth of its size
            upright = ImageOps.exif_transpose(image)
            gray = upright.convert("L") if upright.mode in {"1", "L"} else to_rgb(upright)
            # Half-way by averaging whole pixels, which is fast.
            gray = gray.reduce(max(1, min(gray.size) // (3 * _FINE))).convert("L")
            resized = gray.resize((_FINE, _FINE), Image.Resampling.BILINEAR)
            return np.asarray(resized.filter(ImageFilter.GaussianBlur(0.5)))
    except Exception:  # decoders raise any exception on corrupt files; the caller reports the file
        return None


def _thumbnails(records: list[Record], data_dir: Path) -> np.ndarray:
    """(N, 96, 96) uint8. Raises UserError listing the images that cannot be read."""
    paths = [image_path(record, data_dir) for record in records]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(tqdm(pool.map(thumbnail, paths), total=len(paths), desc="images", unit="", disable=None))
    unreadable = [
        f"{record['id']}: {path}" for record, path, image in zip(records, paths, images, strict=True) if image is None
    ]
    if unreadable:
        raise UserError(f"{len(unreadable)} image(s) cannot be read. Prepare the data again:", unreadable)
    return np.array(images, dtype=np.uint8).reshape(-1, _FINE, _FINE)
