"""The numbers of metrics.json: average precision, and beside it all that average precision cannot see.

Fractions, not per cent; None where a value is undefined. docs/architecture.md explains each key. Scoring imports neither
torch nor transformers and starts in a fraction of a second.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from boxtune.answers.calibration import reliability
from boxtune.answers.confidence import RANKINGS
from boxtune.answers.noise import NOISE_LABEL
from boxtune.metrics.average_precision import CocoBoxes, Matches, all_classes, constant_score_ap
from boxtune.metrics.bootstrap import bootstrap, interval
from boxtune.metrics.error_types import confusion, count_error_types
from boxtune.metrics.matching import ImageMatch, is_click, match_images, scored_hits
from boxtune.metrics.sizes import size_scores

INTERVALS = ("AP", "AP50", "f1", "mean_iou_gt")


def score(
    records: list[dict],
    predictions: list[dict],
    classes: list[str],
    *,
    iou_threshold: float = 0.5,
    seed: int = 0,
    provenance: dict | None = None,
) -> dict:
    """The content of metrics.json. `predictions[i]` answers `records[i]`, as `read_predictions` returns them.

    `seed` draws the orders of `AP_constant_score`, whose spread is a standard deviation, and the images of `intervals`
    (boxtune/metrics/bootstrap.py, 300 draws). `predicted` and precision leave out predictions that are excused by an ignored box.
    Per class and in `f1_macro` stand the data set's classes; a label that is none of them counts as a false positive and in
    `unknown_label_boxes`. An image is empty when it has no truth other than ignored boxes. For click answers `points` is
    filled, and all that needs an IoU or an area is None.
    """
    if [record["id"] for record in records] != [prediction["id"] for prediction in predictions]:
        raise ValueError("records and predictions must have the same ids in the same order")
    classes, click = all_classes(records, classes), is_click(predictions)
    images = match_images(records, predictions, iou_threshold)
    boxes = None if click else CocoBoxes(records, predictions, classes)
    matches = boxes.match(boxes.scores) if boxes else None
    counts = _class_counts(records, predictions, images)
    per_class = {name: {"AP": None, "AP50": None} | counts.get(name, _Counts()).summary() for name in classes}
    rates, fared = total_rates(images), (records, predictions, images)
    matching = {
        **rates,
        "f1_macro": _mean([row["f1"] for row in per_class.values() if row["f1"] is not None]),
        "mean_iou_tp": None if click else _mean([iou for image in images for *_, iou in image.pairs]),
        "mean_iou_gt": mean_iou(images),
    }
    samples = bootstrap(matches, images, seed)
    empty = [image for image, record in zip(images, records, strict=True) if all(record["objects"]["ignore"])]
    problems = Counter(problem for prediction in predictions for problem in prediction["problems"])
    return {
        **_coco_metrics(boxes, matches, seed, classes, per_class),
        "score_source": _score_source([prediction["objects"] for prediction in predictions]),
        "per_class": per_class,
        "matching": {"iou_threshold": iou_threshold} | (dict.fromkeys(matching) if click else matching),
        "parse": {
            "images": len(predictions),
            "clean": sum(set(prediction["problems"]) <= {NOISE_LABEL} for prediction in predictions),
            "problems": dict(sorted(problems.items())),
        },
        "empty_images": {"images": len(empty), "with_false_positives": sum(bool(image.false) for image in empty)},
        "unknown_label_boxes": sum(
            label.strip() not in per_class for prediction in predictions for label in prediction["objects"]["category"]
        ),
        "duplicate_boxes": sum(len(image.duplicates) for image in images),
        "mistakes": count_error_types(*fared, classes, iou_threshold),
        "confusion": confusion(*fared, classes, iou_threshold),
        "sizes": None if click else size_scores(*fared),
        "intervals": {name: interval(samples[name]) for name in INTERVALS},
        "points": rates if click else None,
        "calibration": reliability(*scored_hits(images, predictions)),
        "provenance": provenance or {},
    }


def _score_source(answers: list[dict]) -> str:
    """ "constant" where all scores are equal, the scorer of `confidence` that made them, or "predictions" for another's."""
    if len({value for objects in answers for value in objects["score"]}) <= 1:
        return "constant"
    made = (
        name for name in RANKINGS if all(objects["score"] == objects.get(f"score_{name}", []) for objects in answers)
    )
    return next(made, "predictions")


def total_rates(images: list[ImageMatch]) -> dict:
    """tp, fp, fn, precision, recall and f1 over all images."""
    return sum((_Counts(image.tp, image.fp, image.fn) for image in images), _Counts()).rates()


def mean_iou(images: list[ImageMatch]) -> float | None:
    """`mean_iou_gt`: over all truth boxes; None where there are none, and for points."""
    return _mean([iou for image in images for iou in image.ious])


def _coco_metrics(
    boxes: CocoBoxes | None, matches: Matches | None, seed: int, classes: list[str], per_class: dict
) -> dict:
    """The COCO numbers, None for points; fills in AP and AP50 of `per_class`."""
    if boxes is None:
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
        return {**dict.fromkeys(names), "AP_constant_score": {"mean": None, "spread": None}}
    coco = matches.coco()
    for i, name in enumerate(classes):
        per_class[name] |= {"AP": coco.ap(category=i), "AP50": coco.ap(0, category=i)}
    areas = {area: boxes.match(boxes.scores, area).coco() for area in ("small", "medium", "large")}
    return {
        "AP": coco.ap(),
        "AP50": coco.ap(0),
        "AP75": coco.ap(5),
        **{f"AP_{area}": result.ap() for area, result in areas.items()},
        "AR100": coco.ar(),
        "AP_constant_score": constant_score_ap(boxes, seed),
    }


@dataclass(frozen=True)
class _Counts:
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    def rates(self) -> dict:
        return {
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "precision": _ratio(self.tp, self.tp + self.fp),
            "recall": _ratio(self.tp, self.tp + self.fn),
            "f1": _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn),
        }

    def summary(self) -> dict:
        return {"truth": self.tp + self.fn, "predicted": self.tp + self.fp, **self.rates()}


def _class_counts(records, predictions, images: list[ImageMatch]) -> dict[str, _Counts]:
    tp, fp, fn = Counter(), Counter(), Counter()
    for record, prediction, image in zip(records, predictions, images, strict=True):
        truth, answers = record["objects"]["category"], prediction["objects"]["category"]
        tp.update(truth[j].strip() for _, j, _ in image.pairs)
        fp.update(answers[i].strip() for i in image.false)
        fn.update(truth[j].strip() for j in image.missed)
    return {name: _Counts(tp[name], fp[name], fn[name]) for name in [*(tp | fp | fn)]}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
