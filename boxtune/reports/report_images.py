"""The images of report.html as JSON for report.js: which ones to show, and what the script needs to match and draw them."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from boxtune.answers.predictions import Prediction, place_column
from boxtune.common.drawing import thumbnail, to_data_uri
from boxtune.data.boxes import box_iou
from boxtune.data.images import load_image
from boxtune.data.records import Objects, Record, image_path, with_objects
from boxtune.metrics.error_types import error_types
from boxtune.metrics.matching import ImageMatch, match_images, same_label, worst_first

# Bytes of all image files of a page together. Base64 adds a third, so a page with 1,000 images stays below 20 MB.
PAGE_IMAGE_BYTES = 11_000_000
MAX_IMAGE_BYTES = 60_000
# Longest side in pixels. On a page with more than MANY images a smaller image looks better than one with stronger compression.
SIDE, SIDE_OF_MANY, MANY = 480, 360, 400
WORKERS = 4


@dataclass(frozen=True)
class ShownImages:
    """Positions of the images that the page shows. `random` are those among them that were drawn, in the order of drawing."""

    positions: set[int]
    random: list[int]


def choose_images(matches: list[ImageMatch], limit: int, seed: int) -> ShownImages:
    """At most `limit` images: the worst half, and others drawn with `seed`.

    The draws come from all images, including the worst, so the random images give a fair impression of the split.
    """
    order = np.random.default_rng(seed).permutation(len(matches)).tolist()
    if len(matches) <= limit:
        return ShownImages(positions=set(order), random=order)
    shown = set(worst_first(matches)[: worst_half(limit)])
    drawn = []
    for i in order:
        if len(shown) == limit:
            break
        shown.add(i)
        drawn.append(i)
    return ShownImages(positions=shown, random=drawn)


def worst_half(limit: int) -> int:
    """How many of `limit` images are the worst ones."""
    return limit - limit // 2


def image_data(
    records: list[Record],
    predictions: list[Prediction],
    matches: list[ImageMatch],
    classes: list[str],
    iou_threshold: float,
    shown: ShownImages,
    data_dir: Path,
) -> list[dict[str, Any]]:
    """One entry per image. All entries have what is counted; only those of `shown` images have what is drawn."""
    excusable = _excusable_predictions(records, predictions)
    entries = [
        _matching_data(records[i], predictions[i], matches[i], excusable[i], classes, iou_threshold)
        for i in range(len(records))
    ]
    positions = sorted(shown.positions)
    images = _load_images([image_path(records[i], data_dir) for i in positions])
    for i, image in zip(positions, images, strict=True):
        _add_drawing_data(entries[i], records[i], predictions[i], image)
    return entries


# ---- what is counted ---------------------------------------------------------------------------------------------------


def _excusable_predictions(records: list[Record], predictions: list[Prediction]) -> list[list[int]]:
    """For each image the predictions that are not counted if nothing matches them: those that ignored boxes alone excuse."""
    only_ignored = [
        with_objects(record, [j for j, is_ignored in enumerate(record["objects"]["ignore"]) if is_ignored])
        for record in records
    ]
    return [match.excused for match in match_images(only_ignored, predictions)]


def _matching_data(
    record: Record,
    prediction: Prediction,
    match: ImageMatch,
    excusable: list[int],
    classes: list[str],
    iou_threshold: float,
) -> dict[str, Any]:
    """What report.js needs to match one image at any minimum score.

    predictions.unmatched: what each prediction is when it matches nothing, "excused" or a key of ERROR_TYPES.
    pairs: [prediction, ground truth box, IoU], highest IoU first, ties in the order of `boxtune.data.boxes.match_greedy`.
    For points the pairs are those of `match` with IoU 1: points have no minimum score, and their matching is not greedy.
    """
    gt, predicted = record["objects"], prediction["objects"]
    all_unmatched = replace(match, false_positives=list(range(len(predicted["category"]))))
    types = error_types(record, prediction, all_unmatched, classes, iou_threshold) | dict.fromkeys(excusable, "excused")
    is_click = "point" in predicted
    return {
        "gt": {"label": _stripped(gt["category"]), "ignored": gt["ignore"]},
        "predictions": {
            "label": _stripped(predicted["category"]),
            "score": predicted["score"],
            "unmatched": [types[i] for i in range(len(predicted["category"]))],
        },
        "pairs": [(i, j, 1.0) for i, j, _ in match.pairs] if is_click else _overlapping_pairs(predicted, gt),
        "problems": prediction["problems"],
    }


def _overlapping_pairs(predicted: dict[str, list[Any]], gt: Objects) -> list[tuple[int, int, float]]:
    """(prediction, ground truth box, IoU) of the same class with an IoU above 0, without ignored boxes; highest IoU first."""
    iou = box_iou(predicted["bbox"], gt["bbox"]) * same_label(predicted["category"], gt["category"])
    iou[:, np.flatnonzero(gt["ignore"])] = 0
    pairs = [(int(i), int(j), float(iou[i, j])) for i, j in zip(*np.nonzero(iou), strict=True)]
    return sorted(pairs, key=lambda pair: -pair[2])


def _stripped(labels: list[str]) -> list[str]:
    return [label.strip() for label in labels]


# ---- what is drawn -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _PageImage:
    """The image as a data URI, or the reason why there is none."""

    data_uri: str | None = None
    problem: str = ""


def _add_drawing_data(entry: dict[str, Any], record: Record, prediction: Prediction, image: _PageImage) -> None:
    """Add what a card shows; boxes and points in pixels of the original image."""
    predicted = prediction["objects"]
    entry["gt"]["place"] = _rounded(record["objects"]["bbox"])
    entry["predictions"]["place"] = _rounded(predicted[place_column(predicted)])
    entry |= {
        "id": record["id"],
        "image": record["image"],
        "width": record["width"],
        "height": record["height"],
        "text": prediction["text"],
        "seconds": prediction["seconds"],
        "data_uri": image.data_uri,
        "image_problem": image.problem,
    }


def _rounded(places: Iterable[list[float]]) -> list[list[float]]:
    return [[round(value, 1) for value in place] for place in places]


def _load_images(paths: list[Path]) -> list[_PageImage]:
    """The images of the page, small enough that the page keeps its size limit."""
    side = SIDE if len(paths) <= MANY else SIDE_OF_MANY
    max_bytes = min(MAX_IMAGE_BYTES, PAGE_IMAGE_BYTES // max(1, len(paths)))
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda path: _load_image(path, side, max_bytes), paths))


def _load_image(path: Path, side: int, max_bytes: int) -> _PageImage:
    if not path.is_file():
        return _PageImage(problem="image file not found")
    try:
        return _PageImage(data_uri=to_data_uri(thumbnail(load_image(path), side), max_bytes))
    except OSError:
        return _PageImage(problem="image file cannot be read")
