"""The numbers of metrics.json: average precision, and everything that average precision does not show.

Fractions, not percentages; None where a value is undefined. docs/metrics.md explains each key. Scoring imports neither
torch nor transformers and starts in a fraction of a second.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from boxtune.answers.calibration import reliability
from boxtune.answers.confidence import RANKINGS
from boxtune.answers.predictions import Prediction
from boxtune.answers.selection import INTENDED
from boxtune.data.records import Record
from boxtune.metrics.average_precision import all_classes, constant_score_ap
from boxtune.metrics.bootstrap import bootstrap, interval
from boxtune.metrics.captions import caption_scores
from boxtune.metrics.coco_matching import CocoBoxes
from boxtune.metrics.error_types import confusion, count_error_types
from boxtune.metrics.matching import ImageMatch, is_click, match_images, scored_hits
from boxtune.metrics.misses import count_miss_causes
from boxtune.metrics.pairs import FlatSplit, flatten_split
from boxtune.metrics.precision_recall import RankedMatches
from boxtune.metrics.sizes import size_scores

# The numbers of metrics.json that have a 95 % interval.
INTERVALS = ("AP", "AP50", "f1", "mean_iou_gt")


def score(
    records: list[Record],
    predictions: list[Prediction],
    classes: list[str],
    *,
    iou_threshold: float = 0.5,
    seed: int = 0,
    provenance: dict | None = None,
    shared: "Shared | None" = None,
    absent: dict | None = None,
) -> dict:
    """The content of metrics.json. `predictions[i]` belongs to `records[i]`, as `read_predictions` returns them.

    `seed` draws the orders of `AP_constant_score`, whose spread is a standard deviation, and the 300 bootstrap draws of
    `intervals`. `predicted` and precision leave out predictions inside ignored boxes. `per_class` and `f1_macro` cover the
    dataset's classes; a prediction with another label is a false positive and counted in `unknown_label_boxes`. An image
    is empty if it has no ground truth other than ignored boxes. For points the numbers are in `points`, and everything that
    needs an IoU or an area is None.
    `shared` comes from `share`, if the curves or the report use it again. `absent` is what questions about absent classes gave.

    Raises ValueError if the ids of records and predictions differ.
    """
    if [record["id"] for record in records] != [prediction["id"] for prediction in predictions]:
        raise ValueError("records and predictions must have the same ids in the same order")
    classes, click = all_classes(records, classes), is_click(predictions)
    shared = shared or share(records, predictions, classes, iou_threshold)
    split, images, boxes = shared.split, shared.images, shared.boxes
    matches = boxes.ranked if boxes else None

    coco, per_class_ap = _coco_metrics(boxes, matches, classes, seed)
    counts = _class_counts(records, predictions, images)
    per_class = {name: per_class_ap[name] | counts.get(name, _Counts()).summary() for name in classes}
    rates = total_rates(images)
    matching = {
        **rates,
        "f1_macro": _mean([row["f1"] for row in per_class.values() if row["f1"] is not None]),
        "mean_iou_tp": None if click else _mean([iou for image in images for *_, iou in image.pairs]),
        "mean_iou_gt": mean_iou(images),
    }
    samples = bootstrap(matches, images, seed)
    return {
        **coco,
        "score_source": _score_source(predictions),
        "per_class": per_class,
        "matching": {"iou_threshold": iou_threshold} | (dict.fromkeys(matching) if click else matching),
        "parse": _parse_counts(predictions),
        "empty_images": _empty_image_counts(records, images),
        "absent": absent,
        "unknown_label_boxes": sum(
            label.strip() not in per_class for prediction in predictions for label in prediction["objects"]["category"]
        ),
        "duplicate_boxes": sum(len(image.duplicates) for image in images),
        "mistakes": count_error_types(records, predictions, images, classes, iou_threshold, split),
        "misses": count_miss_causes(records, predictions, images, iou_threshold, split),
        "confusion": confusion(records, predictions, images, classes, iou_threshold, split),
        "sizes": None if click else size_scores(records, predictions, images),
        "intervals": {name: interval(samples[name]) for name in INTERVALS},
        "points": rates if click else None,
        "calibration": reliability(*scored_hits(images, predictions)),
        **({"captions": captions} if (captions := caption_scores(records, predictions, images)) else {}),
        "provenance": provenance or {},
    }


@dataclass(frozen=True)
class Shared:
    """What `score`, `curves` and the report all need, computed once. Points have neither `split` nor `boxes`."""

    split: FlatSplit | None
    images: list[ImageMatch]
    boxes: CocoBoxes | None


def share(
    records: list[Record], predictions: list[Prediction], classes: list[str], iou_threshold: float = 0.5
) -> Shared:
    """`predictions[i]` belongs to `records[i]`; `classes` are those of the dataset."""
    classes = all_classes(records, classes)
    split = None if is_click(predictions) else flatten_split(records, predictions, classes)
    images = match_images(records, predictions, iou_threshold, split)
    return Shared(split, images, CocoBoxes(records, predictions, classes, split) if split else None)


def total_rates(images: list[ImageMatch]) -> dict:
    """tp, fp, fn, precision, recall and f1 over all images."""
    return sum((_Counts(image.tp, image.fp, image.fn) for image in images), _Counts()).rates()


def mean_iou(images: list[ImageMatch]) -> float | None:
    """`mean_iou_gt`: the mean over all ground truth boxes; None if there are none, and for points."""
    return _mean([iou for image in images for iou in image.ious])


def _coco_metrics(
    boxes: CocoBoxes | None, matches: RankedMatches | None, classes: list[str], seed: int
) -> tuple[dict, dict[str, dict]]:
    """(the COCO numbers of the split, {class: {"AP", "AP50"}}); all None for points, which have neither boxes nor matches."""
    if boxes is None or matches is None:
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
        undefined = {**dict.fromkeys(names), "AP_constant_score": {"mean": None, "spread": None}}
        return undefined, {name: {"AP": None, "AP50": None} for name in classes}
    result = matches.accumulate()
    by_area = {f"AP_{area}": boxes.match(boxes.scores, area).accumulate().ap() for area in ("small", "medium", "large")}
    split = {
        "AP": result.ap(),
        "AP50": result.ap(threshold=0),
        "AP75": result.ap(threshold=5),
        **by_area,
        "AR100": result.ar(),
        "AP_constant_score": constant_score_ap(boxes, seed),
    }
    per_class = {
        name: {"AP": result.ap(category=number), "AP50": result.ap(threshold=0, category=number)}
        for number, name in enumerate(classes)
    }
    return split, per_class


def _score_source(predictions: list[Prediction]) -> str:
    """Where the scores come from.

    "constant" if all scores are equal, a name of RANKINGS if the scores equal its column, otherwise "predictions".
    """
    objects = [prediction["objects"] for prediction in predictions]
    if len({value for columns in objects for value in columns["score"]}) <= 1:
        return "constant"
    for name in RANKINGS:
        if all(columns["score"] == columns.get(f"score_{name}", []) for columns in objects):
            return name
    return "predictions"


def _parse_counts(predictions: list[Prediction]) -> dict:
    """How many responses were read, how many of them without a problem, and how often each problem occurred."""
    problems = Counter(problem for prediction in predictions for problem in prediction["problems"])
    return {
        "images": len(predictions),
        "clean": sum(INTENDED.issuperset(prediction["problems"]) for prediction in predictions),
        "problems": dict(sorted(problems.items())),
    }


def _empty_image_counts(records: list[Record], images: list[ImageMatch]) -> dict:
    empty = [image for image, record in zip(images, records, strict=True) if all(record["objects"]["ignore"])]
    return {"images": len(empty), "with_false_positives": sum(image.fp > 0 for image in empty)}


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


def _class_counts(records: list[Record], predictions: list[Prediction], images: list[ImageMatch]) -> dict[str, _Counts]:
    """{label: counts} of all labels that have a true positive, false positive or false negative."""
    tp: Counter[str] = Counter()
    fp: Counter[str] = Counter()
    fn: Counter[str] = Counter()
    for record, prediction, image in zip(records, predictions, images, strict=True):
        gt_labels, predicted_labels = record["objects"]["category"], prediction["objects"]["category"]
        tp.update(gt_labels[j].strip() for _, j, _ in image.pairs)
        fp.update(predicted_labels[i].strip() for i in image.false_positives)
        fn.update(gt_labels[j].strip() for j in image.missed)
    return {name: _Counts(tp[name], fp[name], fn[name]) for name in tp | fp | fn}


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list) -> float | None:
    return float(np.mean(values)) if values else None
