"""Why ground truth boxes are missed."""

import numpy as np
import pytest

from boxtune.metrics.matching import match_images
from boxtune.metrics.misses import MISS_CAUSES, NEVER, cause_scores, count_miss_causes
from boxtune.metrics.scoring import share


def a_pair(gt, predicted, ignore=None, place="bbox"):
    """A record and its prediction; `gt` lists (label, box), `predicted` lists (label, box or point, score)."""
    labels, boxes = ([row[k] for row in gt] for k in range(2))
    record = {"id": "a", "objects": {"bbox": boxes, "category": labels, "ignore": ignore or [False] * len(gt)}}
    names, places, scores = ([row[k] for row in predicted] for k in range(3))
    return record, {"id": "a", "objects": {place: places, "category": names, "score": scores}}


def counts(record, prediction):
    found = share([record], [prediction], ["cat", "dog"])
    return count_miss_causes([record], [prediction], found.images, 0.5, found.split)


BOX = [0, 0, 100, 100]


@pytest.mark.parametrize(
    ("predicted", "cause"),
    [
        ([], "no_box"),
        ([("cat", [200, 200, 300, 300], 0.9)], "no_box"),
        ([("cat", [0, 0, 100, 9.9], 0.9)], "no_box"),  # an IoU of 0.099
        ([("cat", [0, 0, 100, 10], 0.9)], "localisation"),
        ([("cat", [0, 0, 100, 49], 0.9)], "localisation"),
        ([("dog", [0, 0, 100, 49], 0.9)], "no_box"),
        ([("dog", [0, 0, 100, 50], 0.9)], "wrong_class"),
        ([("zebra", BOX, 0.9)], "wrong_class"),
        ([("cat", [0, 0, 100, 49], 0.9), ("dog", BOX, 0.1)], "wrong_class"),
    ],
)
def test_a_missed_box_has_one_cause(predicted, cause):
    assert counts(*a_pair([("cat", BOX)], predicted)) == {**dict.fromkeys(MISS_CAUSES, 0), cause: 1}


def test_a_box_on_two_objects_is_shared():
    """The prediction overlaps both objects enough but matches only the one with the higher IoU."""
    pair = a_pair([("cat", [0, 0, 100, 10]), ("cat", [30, 0, 130, 10])], [("cat", [25, 0, 125, 10], 0.9)])
    assert counts(*pair) == {**dict.fromkeys(MISS_CAUSES, 0), "taken": 1}


def test_boxes_that_are_found_or_ignored_are_not_missed():
    found = a_pair([("cat", BOX)], [("cat", BOX, 0.9), ("dog", BOX, 0.9)])
    ignored = a_pair([("cat", BOX)], [("dog", BOX, 0.9)], ignore=[True])
    assert not any(counts(*found).values())
    assert not any(counts(*ignored).values())


def test_a_cause_has_the_highest_score_of_the_predictions_that_show_it():
    record, prediction = a_pair(
        [("cat", BOX), ("dog", [500, 0, 600, 100])],
        [("dog", BOX, 0.2), ("dog", BOX, 0.7), ("cat", [0, 0, 100, 40], 0.9)],
    )
    split = share([record], [prediction], ["cat", "dog"]).split
    scores = cause_scores([record], [prediction], 0.5, split)
    assert scores.tolist() == [[NEVER, NEVER], [0.7, NEVER], [0.9, NEVER]]


def test_points_in_a_missed_box_show_its_cause():
    gt = [("cat", BOX), ("cat", [200, 0, 300, 100]), ("cat", [0, 200, 100, 300])]
    predicted = [("dog", [50, 50], 0.5), ("cat", [400, 400], 0.5)]
    assert counts(*a_pair(gt, predicted, place="point")) == {
        "taken": 0,
        "wrong_class": 1,
        "localisation": 0,
        "no_box": 2,
    }
    nested = [("cat", BOX), ("cat", [10, 10, 90, 90])]  # one point for two objects
    assert counts(*a_pair(nested, [("cat", [50, 50], 0.5)], place="point"))["taken"] == 1


def test_the_causes_add_up_to_the_missed_boxes():
    draw = np.random.default_rng(1)
    records, predictions = [], []
    for _ in range(30):
        corners = [(draw.integers(0, 6, (n, 2)) * 20.0) for n in draw.integers(0, 9, 2)]
        boxes = [np.hstack([c, c + draw.integers(3, 9, c.shape) * 20]).tolist() for c in corners]
        labels = [draw.choice(["cat", "dog"], len(rows)).tolist() for rows in boxes]
        predicted = zip(labels[1], boxes[1], draw.random(len(boxes[1])).tolist(), strict=True)
        record, prediction = a_pair(list(zip(labels[0], boxes[0], strict=True)), list(predicted))
        records.append(record)
        predictions.append(prediction)
    shared = share(records, predictions, ["cat", "dog"])
    causes = count_miss_causes(records, predictions, shared.images, 0.5, shared.split)
    assert sum(causes.values()) == sum(image.fn for image in match_images(records, predictions))
    assert all(causes.values())
