"""Records and predictions in memory, and pycocotools' numbers of them: what the tests of scoring share."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def a_record(name="a", boxes=(), labels=None, ignore=None, size=(640, 480)):
    boxes = [list(box) for box in boxes]
    objects = {
        "bbox": boxes,
        "category": list(labels or ["cat"] * len(boxes)),
        "ignore": list(ignore or [False] * len(boxes)),
    }
    return {"id": name, "image": f"{name}.jpg", "width": size[0], "height": size[1], "objects": objects, "messages": []}


def a_prediction(name="a", boxes=(), labels=None, scores=None, problems=(), place="bbox"):
    boxes = [list(box) for box in boxes]
    objects = {
        place: boxes,
        "category": list(labels or ["cat"] * len(boxes)),
        "score": list(scores or [1.0] * len(boxes)),
    }
    return {"id": name, "objects": objects, "problems": list(problems)}


def random_data(seed, images=25, classes=4, crowd=0.15, ties=False, empty=0.2):
    """Boxes with jittered answers; the last class never has truth but is predicted."""
    rng = np.random.default_rng(seed)
    names = [f"class {i}" for i in range(classes)]
    records, predictions = [], []
    for i in range(images):
        n = 0 if rng.random() < empty else int(rng.integers(1, 14))
        corner, size = rng.uniform(0, 400, (n, 2)), np.exp(rng.uniform(np.log(6), np.log(230), (n, 2)))
        boxes = np.concatenate([corner, corner + size], axis=1)
        labels = [names[k] for k in rng.integers(0, max(1, classes - 1), n)]
        records.append(a_record(str(i), boxes.tolist(), labels, (rng.random(n) < crowd).tolist(), (640, 640)))
        answers, answer_labels = [], []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 0.07 * (box[2:] - box[:2]).min(), 4)
                if moved[2] > moved[0] and moved[3] > moved[1]:
                    answers.append(moved.tolist())
                    answer_labels.append(label if rng.random() < 0.9 else names[rng.integers(classes)])
        for _ in range(rng.integers(0, 3)):
            corner = rng.uniform(0, 400, 2)
            answers.append([*corner, *(corner + rng.uniform(5, 200, 2))])
            answer_labels.append(names[rng.integers(classes)])
        scores = rng.random(len(answers))
        scores = np.round(scores, 1) if ties else scores
        predictions.append(a_prediction(str(i), answers, answer_labels, scores.tolist()))
    return records, predictions, names


def pycocotools_stats(records, predictions, classes):
    """The reference: pycocotools on COCO dictionaries that are written here, not by the code under test."""
    number = {name: i + 1 for i, name in enumerate(classes)}

    def rows(sources, extra):
        for i, source in enumerate(sources):
            objects = source["objects"]
            for j, (x0, y0, x1, y1) in enumerate(objects["bbox"]):
                box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "image_id": i + 1}
                yield {**box, "category_id": number[objects["category"][j]], **extra(objects, j)}

    def dataset(annotations):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i + 1} for i in range(len(records))],
            "categories": [{"id": i, "name": name} for name, i in number.items()],
            "annotations": [{"id": i, **row} for i, row in enumerate(annotations, 1)],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        truth = dataset(rows(records, lambda objects, j: {"iscrowd": int(objects["ignore"][j])}))
        answers = dataset(rows(predictions, lambda objects, j: {"iscrowd": 0, "score": objects["score"][j]}))
        evaluation = COCOeval(truth, answers, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5, "AR100": 8}
    stats = {name: None if evaluation.stats[i] == -1 else evaluation.stats[i] for name, i in names.items()}
    return stats, evaluation.eval["precision"]
