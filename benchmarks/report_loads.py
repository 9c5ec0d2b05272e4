"""Simulated evaluations for `python -m benchmarks.report`: a prepared dataset and predictions for it, drawn with a seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from boxtune.data.questions import turns_for

SIDE = 1000
# (records, predictions, classes)
Load = tuple[list[dict], list[dict], list[str]]


def write_load(name: str, folder: Path, seed: int = 0) -> None:
    """Write the dataset of LOADS[name] to folder/data and its predictions to folder/predictions.jsonl."""
    records, predictions, classes = LOADS[name](np.random.default_rng(seed))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    objects = sum(len(record["objects"]["bbox"]) for record in records)
    empty = sum(not record["objects"]["bbox"] for record in records)
    info = {
        "name": name,
        "format": "simulated",
        "classes": classes,
        "splits": {"test": {"images": len(records), "objects": objects, "empty": empty}},
        "problems": {},
    }
    (folder / "data" / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    _write_lines(folder / "data" / "test.jsonl", records)
    _write_lines(folder / "predictions.jsonl", predictions)


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _split(
    rng: np.random.Generator, gt_counts: np.ndarray, class_count: int, alarms: int = 4, crowd: int = 1_000
) -> Load:
    """One image per entry of `gt_counts`, each with fewer than `alarms` boxes on background.

    The objects of an image with at least `crowd` objects are all of one class.
    """
    classes = [f"thing {i}" for i in range(class_count)]
    turns = turns_for(classes)
    records, predictions = [], []
    for number, count in enumerate(gt_counts.tolist()):
        image_classes = 1 if count >= crowd else class_count
        gt_boxes, gt_label = _boxes(rng, count), rng.integers(0, image_classes, count)
        boxes, label = _predicted(rng, gt_boxes, gt_label, image_classes, int(rng.integers(0, alarms)))
        common = {"id": f"{number:06d}", "image": f"{number:06d}.jpg", "width": SIDE, "height": SIDE}
        ignore = (rng.random(count) < 0.02).tolist()
        names = [classes[i] for i in gt_label]
        objects = {"bbox": gt_boxes.tolist(), "category": names, "ignore": ignore}
        records.append(common | {"objects": objects, "messages": turns})
        predicted = {
            "bbox": boxes.tolist(),
            "category": [classes[i] for i in label],
            "score": rng.random(len(boxes)).round(6).tolist(),
        }
        answer = [
            {"bbox_2d": [round(v) for v in box], "label": name}
            for box, name in zip(predicted["bbox"], predicted["category"], strict=True)
        ]
        facts = {"codec": "qwen3_vl", "input_size": [SIDE, SIDE], "text": json.dumps(answer)}
        predictions.append(common | facts | {"objects": predicted, "problems": [], "seconds": 0.5})
    return records, predictions, classes


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) boxes of 8 to 250 pixels, with three decimals."""
    corner, side = rng.uniform(0, 700, (count, 2)), np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
    boxes: np.ndarray = np.concatenate([corner, corner + side], axis=1).round(3)
    return boxes


def _predicted(
    rng: np.random.Generator, gt_boxes: np.ndarray, gt_label: np.ndarray, class_count: int, alarms: int
) -> tuple[np.ndarray, np.ndarray]:
    """(boxes, labels): ground truth that is missed, found once or found twice, shifted and partly relabeled; and false alarms."""
    found = np.repeat(np.arange(len(gt_boxes)), rng.choice([0, 1, 2], len(gt_boxes), p=[0.15, 0.76, 0.09]))
    side = gt_boxes[found, 2:] - gt_boxes[found, :2]
    boxes = gt_boxes[found] + rng.normal(0, 0.08, (len(found), 4)) * np.tile(side, 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    is_renamed = rng.random(len(found)) < 0.07
    label = np.where(is_renamed, rng.integers(0, class_count, len(found)), gt_label[found])
    boxes = np.concatenate([boxes, _boxes(rng, alarms)]).round(3)
    return boxes, np.concatenate([label, rng.integers(0, class_count, alarms)])


def _one_crowd(rng: np.random.Generator) -> Load:
    counts = rng.integers(0, 34, 1_000)
    counts[500] = 3_000
    return _split(rng, counts, 20)


# 5,000 images: about 82,000 ground truth boxes.
LOADS: dict[str, Callable[[np.random.Generator], Load]] = {
    "many_images": lambda rng: _split(rng, rng.integers(0, 34, 5_000), 20),
    "many_classes": lambda rng: _split(rng, rng.integers(0, 34, 5_000), 365),
    "one_crowd": _one_crowd,
    "twenty_thousand": lambda rng: _split(rng, rng.integers(0, 34, 20_000), 20),
    "one_hundred_thousand_boxes": lambda rng: _split(rng, np.array([1_000, 5]), 20, alarms=200_000),
}
