"""COCO average precision of records and predictions in memory, computed by faster-coco-eval and equal to pycocotools.

Truth that is ignored goes in as `iscrowd`. As in COCO, at most the 100 best-scored boxes of a class and image count, boxes
of equal score are taken in the order in which they stand, and a label that no truth box bears costs nothing.
"""

from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from boxtune.boxes import box_area, box_xyxy_to_xywh

MAX_BOXES = 100
AREAS = ("all", "small", "medium", "large")
RECALLS = np.linspace(0, 1, 101)
ORDERS = 20


@dataclass(frozen=True)
class CocoResult:
    """What COCO calls precision and recall: (10 IoU thresholds, 101 recalls, classes, areas) and (10, classes, areas).

    −1 stands where a class has no truth of that area.
    """

    precision: np.ndarray
    recall: np.ndarray

    def ap(self, threshold: int | slice = slice(None), area: str = "all", category: int | slice = slice(None)):
        """Mean precision or None; `threshold` counts in steps of 0.05 from 0.5, `category` in the order of the classes."""
        return mean_defined(self.precision[threshold][..., category, AREAS.index(area)])

    def ar(self) -> float | None:
        return mean_defined(self.recall[..., AREAS.index("all")])


def mean_defined(values: np.ndarray) -> float | None:
    """Mean of the values that are not −1; None where there is none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def all_classes(records: list[dict], classes: list[str]) -> list[str]:
    """The data set's classes and, after them, whatever else its truth is called."""
    truth = sorted({label.strip() for record in records for label in record["objects"]["category"]})
    return list(dict.fromkeys([*(name.strip() for name in classes), *truth]))


def evaluate_coco(records: list[dict], predictions: list[dict], classes: list[str]) -> CocoResult:
    """COCO precision and recall of `predictions[i]` on `records[i]`; `classes` come from `all_classes`."""
    truth, answers = _truth(records, classes), _answers(predictions, records, classes)
    return _evaluate(truth, answers, len(AREAS))


def constant_score_ap(
    records: list[dict], predictions: list[dict], classes: list[str], seed: int
) -> dict[str, float | None]:
    """AP as if all scores were equal: {"mean", "spread"} over 20 seeded orders of the predictions.

    Equal scores leave the order open and AP depends on it, so each order is spelt out by scores that all differ. `spread`
    is the standard deviation. The result does not depend on the order in which the predictions come.
    """
    truth, answers = _truth(records, classes), _answers(predictions, records, classes)
    boxes = sorted(answers.dataset["annotations"], key=lambda box: (box["image_id"], box["category_id"], box["bbox"]))
    generator, values = np.random.default_rng(seed), []
    for _ in range(ORDERS):
        for box, rank in zip(boxes, generator.permutation(len(boxes)).tolist(), strict=True):
            box["score"] = float(rank)
        values.append(_evaluate(truth, answers, 1).ap())
    if None in values:
        return {"mean": None, "spread": None}
    return {"mean": float(np.mean(values)), "spread": float(np.std(values))}


def curves(records: list[dict], predictions: list[dict], classes: list[str]) -> dict[str, dict[str, list[float]]]:
    """{class: {"recall": 101 values from 0 to 1, "precision": interpolated, at IoU 0.5}} of the classes with truth.

    Points have no curve: an empty dict for click answers.
    """
    if any("point" in prediction["objects"] for prediction in predictions):
        return {}
    classes = all_classes(records, classes)
    precision = evaluate_coco(records, predictions, classes).precision[0, :, :, 0]
    return {
        name: {"recall": RECALLS.tolist(), "precision": precision[:, i].tolist()}
        for i, name in enumerate(classes)
        if precision[0, i] > -1
    }


def _truth(records: list[dict], classes: list[str]) -> COCO:
    rows = [
        (i, box, label, ignored)
        for i, record in enumerate(records)
        for box, label, ignored in zip(*(record["objects"][key] for key in ("bbox", "category", "ignore")), strict=True)
    ]
    boxes = _annotations([row[:3] for row in rows], classes)
    for box, (*_, ignored) in zip(boxes, rows, strict=True):
        box["iscrowd"] = int(ignored)
    return _dataset(records, classes, boxes)


def _answers(predictions: list[dict], records: list[dict], classes: list[str]) -> COCO:
    known = {*classes}
    rows = [
        (i, box, label.strip(), score)
        for i, prediction in enumerate(predictions)
        for box, label, score in zip(
            *(prediction["objects"][key] for key in ("bbox", "category", "score")), strict=True
        )
        if label.strip() in known
    ]
    boxes = _annotations([row[:3] for row in rows], classes)
    for box, (*_, score) in zip(boxes, rows, strict=True):
        box |= {"score": float(score), "iscrowd": 0}
    return _dataset(records, classes, boxes)


def _annotations(rows: list[tuple[int, list, str]], classes: list[str]) -> list[dict]:
    """COCO annotations of (image, box_xyxy, label) rows, numbered from 1 as COCO's matching needs."""
    numbers = {name: i for i, name in enumerate(classes, 1)}
    boxes_xyxy = [box for _, box, _ in rows]
    return [
        {"id": i, "image_id": image + 1, "category_id": numbers[label.strip()], "bbox": box, "area": area}
        for i, ((image, _, label), box, area) in enumerate(
            zip(rows, box_xyxy_to_xywh(boxes_xyxy).tolist(), box_area(boxes_xyxy).tolist(), strict=True), 1
        )
    ]


def _dataset(records: list[dict], classes: list[str], annotations: list[dict]) -> COCO:
    return COCO(
        {
            "images": [{"id": i, "width": r["width"], "height": r["height"]} for i, r in enumerate(records, 1)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes, 1)],
            "annotations": annotations,
        }
    )


def _evaluate(truth: COCO, answers: COCO, areas: int) -> CocoResult:
    """`areas` is how many of AREAS are asked for."""
    evaluation = COCOeval_faster(truth, answers, iouType="bbox")
    evaluation.params.maxDets = [MAX_BOXES]
    evaluation.params.areaRng = evaluation.params.areaRng[:areas]
    evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:areas]
    evaluation.evaluate()
    evaluation.accumulate()
    return CocoResult(evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0])
