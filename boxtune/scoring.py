"""The numbers of metrics.json: average precision, and beside it all that average precision cannot see.

Fractions, not per cent; None where a value is undefined. docs/architecture.md explains each key. Scoring imports neither
torch nor transformers and starts in a fraction of a second.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from boxtune.average_precision import all_classes, constant_score_ap, evaluate_coco
from boxtune.boxes import box_area, box_iou, intersection, match_greedy
from boxtune.calibration import reliability
from boxtune.confidence import RANKINGS

# An unmatched prediction is excused when this share of it lies inside an ignored box of its class.
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class ImageScore:
    """How the answer to one image fared. Numbers index the lists in `objects` of its prediction or of its record.

    pairs: (prediction, truth, IoU) of the true positives; for points the IoU is None.
    false: predictions that are false positives, `duplicates` among them. excused: predictions that are not counted.
    missed: truth that nothing matched, the false negatives. ious: for each truth box not ignored, the IoU of a one-to-one
    matching without threshold, 0 where it has no partner; empty for points.
    """

    id: str
    pairs: list[tuple[int, int, float | None]]
    false: list[int]
    duplicates: list[int]
    excused: list[int]
    missed: list[int]
    ious: list[float]

    @property
    def tp(self) -> int:
        return len(self.pairs)

    @property
    def fp(self) -> int:
        return len(self.false)

    @property
    def fn(self) -> int:
        return len(self.missed)

    @property
    def errors(self) -> int:
        return self.fp + self.fn

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU over the image's truth boxes; None where it has none, and for points."""
        return _mean(self.ious)


def image_scores(records: list[dict], predictions: list[dict], iou_threshold: float = 0.5) -> list[ImageScore]:
    """Match `predictions[i]` with `records[i]`: class-aware, one-to-one, the best pair first."""
    return [_score_image(*pair, iou_threshold) for pair in zip(records, predictions, strict=True)]


def scored_hits(images: list[ImageScore], predictions: list[dict]) -> tuple[list[float], list[bool]]:
    """(scores, whether each is a true positive) of all objects that count."""
    scores, hits = [], []
    for image, prediction in zip(images, predictions, strict=True):
        matched = {i for i, *_ in image.pairs}
        counted = sorted(matched | {*image.false})
        scores += [prediction["objects"]["score"][i] for i in counted]
        hits += [i in matched for i in counted]
    return scores, hits


def worst_first(scores: list[ImageScore]) -> list[int]:
    """Positions in `scores`: most errors first, then lower mean IoU, then the order of the split."""

    def badness(i: int) -> tuple:
        iou = scores[i].mean_iou
        return (-scores[i].errors, 1.0 if iou is None else iou, i)

    return sorted(range(len(scores)), key=badness)


def is_click(predictions: Iterable[dict]) -> bool:
    """Whether the answers are points. Boxes and points are never mixed in one run."""
    return any("point" in prediction["objects"] for prediction in predictions)


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

    `seed` draws the orders of `AP_constant_score`, whose spread is a standard deviation. `predicted` and precision leave
    out predictions that are excused by an ignored box. Per class and in `f1_macro` stand the data set's classes; a label
    that is none of them counts as a false positive and in `unknown_label_boxes`. An image is empty when it has no truth
    other than ignored boxes. For click answers `points` is filled, and all that needs an IoU is None.
    """
    if [record["id"] for record in records] != [prediction["id"] for prediction in predictions]:
        raise ValueError("records and predictions must have the same ids in the same order")
    classes, click = all_classes(records, classes), is_click(predictions)
    images = image_scores(records, predictions, iou_threshold)
    counts = _class_counts(records, predictions, images)
    total = sum(counts.values(), _Counts())
    per_class = {name: {"AP": None, "AP50": None} | counts.get(name, _Counts()).summary() for name in classes}
    rates = total.rates()
    ious = [iou for image in images for iou in image.ious]
    pair_ious = [iou for image in images for *_, iou in image.pairs]
    matching = {
        **rates,
        "f1_macro": _mean([row["f1"] for row in per_class.values() if row["f1"] is not None]),
        "mean_iou_tp": None if click else _mean(pair_ious),
        "mean_iou_gt": None if click else _mean(ious),
    }
    empty = [image for image, record in zip(images, records, strict=True) if all(record["objects"]["ignore"])]
    problems = Counter(problem for prediction in predictions for problem in prediction["problems"])
    return {
        **_coco_metrics(records, predictions, classes, seed, click, per_class),
        "score_source": _score_source([prediction["objects"] for prediction in predictions]),
        "per_class": per_class,
        "matching": {"iou_threshold": iou_threshold} | (dict.fromkeys(matching) if click else matching),
        "parse": {
            "images": len(predictions),
            "clean": sum(not prediction["problems"] for prediction in predictions),
            "problems": dict(sorted(problems.items())),
        },
        "empty_images": {"images": len(empty), "with_false_positives": sum(bool(image.false) for image in empty)},
        "unknown_label_boxes": sum(
            label.strip() not in per_class for prediction in predictions for label in prediction["objects"]["category"]
        ),
        "duplicate_boxes": sum(len(image.duplicates) for image in images),
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


def _coco_metrics(records, predictions, classes, seed: int, click: bool, per_class: dict) -> dict:
    """The COCO numbers; fills in AP and AP50 of `per_class`."""
    if click or not any(record["objects"]["bbox"] for record in records):
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100")
        return {**dict.fromkeys(names), "AP_constant_score": {"mean": None, "spread": None}}
    coco = evaluate_coco(records, predictions, classes)
    for i, name in enumerate(classes):
        per_class[name] |= {"AP": coco.ap(category=i), "AP50": coco.ap(0, category=i)}
    return {
        "AP": coco.ap(),
        "AP50": coco.ap(0),
        "AP75": coco.ap(5),
        "AP_small": coco.ap(area="small"),
        "AP_medium": coco.ap(area="medium"),
        "AP_large": coco.ap(area="large"),
        "AR100": coco.ar(),
        "AP_constant_score": constant_score_ap(records, predictions, classes, seed),
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


def _class_counts(records, predictions, images: list[ImageScore]) -> dict[str, _Counts]:
    tp, fp, fn = Counter(), Counter(), Counter()
    for record, prediction, image in zip(records, predictions, images, strict=True):
        truth, answers = record["objects"]["category"], prediction["objects"]["category"]
        tp.update(truth[j].strip() for _, j, _ in image.pairs)
        fp.update(answers[i].strip() for i in image.false)
        fn.update(truth[j].strip() for j in image.missed)
    return {name: _Counts(tp[name], fp[name], fn[name]) for name in [*(tp | fp | fn)]}


def _score_image(record: dict, prediction: dict, threshold: float) -> ImageScore:
    truth, answers = record["objects"], prediction["objects"]
    counted = [j for j, is_ignored in enumerate(truth["ignore"]) if not is_ignored]
    ignored = [j for j, is_ignored in enumerate(truth["ignore"]) if is_ignored]
    same_class = _same_label(answers["category"], truth["category"])
    if "point" in answers:
        hits = excuses = _point_in_box(answers["point"], truth["bbox"]) & same_class
        pairs = [(i, counted[j], None) for i, j in _match_most(hits[:, counted])]
        ious = []
    else:
        iou = box_iou(answers["bbox"], truth["bbox"]) * same_class
        hits = iou >= threshold
        inside = intersection(answers["bbox"], truth["bbox"])
        excuses = (inside >= IGNORED_SHARE * box_area(answers["bbox"])[:, None]) & same_class
        # The best pair comes first, so the matching at a threshold is the head of the one without: one serves both.
        partners = {counted[j]: (i, float(iou[i, counted[j]])) for i, j in match_greedy(iou[:, counted])}
        pairs = sorted((i, j, value) for j, (i, value) in partners.items() if value >= threshold)
        ious = [partners[j][1] if j in partners else 0.0 for j in counted]
    matched_answers, matched_truth = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    unmatched = [i for i in range(len(answers["category"])) if i not in matched_answers]
    false = [i for i in unmatched if not excuses[i, ignored].any()]
    return ImageScore(
        id=record["id"],
        pairs=pairs,
        false=false,
        duplicates=[i for i in false if hits[i, sorted(matched_truth)].any()],
        excused=[i for i in unmatched if excuses[i, ignored].any()],
        missed=[j for j in counted if j not in matched_truth],
        ious=ious,
    )


def _same_label(labels_a: list[str], labels_b: list[str]) -> np.ndarray:
    """(N, M) bool: labels equal after strip."""
    a, b = ([label.strip() for label in labels] for labels in (labels_a, labels_b))
    return np.array([[x == y for y in b] for x in a], dtype=bool).reshape(len(a), len(b))


def _point_in_box(points_xy: list[list[float]], boxes_xyxy: list[list[float]]) -> np.ndarray:
    """(N, M) bool: the point lies in the box or on its border."""
    points = np.asarray(points_xy, dtype=np.float64).reshape(-1, 1, 2)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(1, -1, 4)
    return ((points >= boxes[..., :2]) & (points <= boxes[..., 2:])).all(-1)


def _match_most(possible: np.ndarray) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of an (N, M) bool matrix, as many as can be made.

    A point in two boxes has no IoU to say whose it is, so no box may lose its point to a box that had another. A row
    without a free column looks, breadth first, for matched rows that can move to another column.
    """
    column_of, row_of = {}, {}
    for start in range(len(possible)):
        came_from, queue, free = {}, [start], None
        for row in queue:
            for column in np.flatnonzero(possible[row]).tolist():
                if column in came_from:
                    continue
                came_from[column] = row
                if column in row_of:
                    queue.append(row_of[column])
                else:
                    free = column
            if free is not None:
                break
        while free is not None:
            row = came_from[free]
            left = column_of.get(row)
            column_of[row], row_of[free] = free, row
            free = left
    return sorted(column_of.items())


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
