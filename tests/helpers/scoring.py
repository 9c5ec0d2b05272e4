"""Records and predictions in memory for the tests of scoring, and their scores by pycocotools."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def a_record(
    name: str = "a",
    boxes: Sequence[Sequence[float]] = (),
    labels: Sequence[str] | None = None,
    ignore: Sequence[bool] | None = None,
    size: tuple[int, int] = (640, 480),
) -> dict:
    """A record of an image with `size` (width, height). By default every box is a "cat" that is not ignored."""
    objects = {
        "bbox": [list(box) for box in boxes],
        "category": list(labels or ["cat"] * len(boxes)),
        "ignore": list(ignore or [False] * len(boxes)),
    }
    return {"id": name, "image": f"{name}.jpg", "width": size[0], "height": size[1], "objects": objects, "messages": []}


def a_prediction(
    name: str = "a",
    boxes: Sequence[Sequence[float]] = (),
    labels: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    problems: Sequence[str] = (),
    place: str = "bbox",
) -> dict:
    """The part of a prediction that scoring reads. With `place` "point", `boxes` are points [x, y]."""
    objects = {
        place: [list(box) for box in boxes],
        "category": list(labels or ["cat"] * len(boxes)),
        "score": list(scores or [1.0] * len(boxes)),
    }
    return {"id": name, "objects": objects, "problems": list(problems)}


def random_data(
    seed: int, images: int = 25, classes: int = 4, crowd: float = 0.15, ties: bool = False, empty: float = 0.2
) -> tuple[list[dict], list[dict], list[str]]:
    """(records, predictions, classes): random boxes, predicted up to twice with noise, and up to two false positives per image.

    The last class is predicted but has no ground truth. `crowd` is the share of ignored boxes, `empty` that of images without
    objects; `ties` rounds the scores, so that many are equal.
    """
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(classes)]
    records, predictions = [], []
    for i in range(images):
        n = 0 if rng.random() < empty else int(rng.integers(1, 14))
        corner, size = rng.uniform(0, 400, (n, 2)), np.exp(rng.uniform(np.log(6), np.log(230), (n, 2)))
        boxes = np.concatenate([corner, corner + size], axis=1)
        labels = [names[k] for k in rng.integers(0, max(1, classes - 1), n)]
        records.append(a_record(str(i), boxes.tolist(), labels, (rng.random(n) < crowd).tolist(), (640, 640)))
        predicted_boxes, predicted_labels = [], []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.07 * (box[2:] - box[:2]).min(), 4)
                if moved[2] > moved[0] and moved[3] > moved[1]:
                    predicted_boxes.append(moved.tolist())
                    predicted_labels.append(label if rng.random() < 0.9 else names[rng.integers(classes)])
        for _ in range(rng.integers(0, 3)):
            corner = rng.uniform(0, 400, 2)
            predicted_boxes.append([*corner, *(corner + rng.uniform(5, 200, 2))])
            predicted_labels.append(names[rng.integers(classes)])
        scores = rng.random(len(predicted_boxes))
        scores = np.round(scores, 1) if ties else scores
        predictions.append(a_prediction(str(i), predicted_boxes, predicted_labels, scores.tolist()))
    return records, predictions, names


def pycocotools_stats(
    records: list[dict], predictions: list[dict], classes: list[str]
) -> tuple[dict[str, float | None], np.ndarray]:
    """(metrics, precision of every curve) by pycocotools, from COCO annotations that are written without the code under test."""
    number = {name: i + 1 for i, name in enumerate(classes)}

    def rows(sources: list[dict], extra: Callable[[dict, int], dict]) -> Iterator[dict]:
        for i, source in enumerate(sources):
            objects = source["objects"]
            for j, (x0, y0, x1, y1) in enumerate(objects["bbox"]):
                stated = objects["area"][j] if "area" in objects else None
                area = (x1 - x0) * (y1 - y0) if stated is None else stated
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "image_id": i + 1}
                yield {**box, "category_id": number[objects["category"][j]], **extra(objects, j)}

    def dataset(annotations: Iterator[dict]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i + 1} for i in range(len(records))],
            "categories": [{"id": i, "name": name} for name, i in number.items()],
            "annotations": [{"id": i, **row} for i, row in enumerate(annotations, 1)],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        gt = dataset(rows(records, lambda objects, j: {"iscrowd": int(objects["ignore"][j])}))
        results = dataset(rows(predictions, lambda objects, j: {"iscrowd": 0, "score": objects["score"][j]}))
        evaluation = COCOeval(gt, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR100": 8}
    stats = {name: None if evaluation.stats[i] == -1 else evaluation.stats[i] for name, i in names.items()}
    return stats, evaluation.eval["precision"]
