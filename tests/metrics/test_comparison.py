"""Two runs on the same images: their numbers, the interval of the difference, and who won which image."""

import pytest

from boxtune.common.errors import UserError
from boxtune.metrics.comparison import VALUES, compare
from boxtune.metrics.scoring import score
from tests.helpers.scoring import a_prediction, a_record, random_data


def test_the_numbers_are_those_of_scoring():
    records, a, classes = random_data(1, images=30)
    b = [
        prediction | {"objects": {key: column[1:] for key, column in prediction["objects"].items()}} for prediction in a
    ]
    result = compare(records, a, b, classes)
    for side, predictions in (("A", a), ("B", b)):
        metrics = score(records, predictions, classes)
        metrics |= metrics["matching"]
        assert {key: row[side] for key, row in result["values"].items()} == {key: metrics[key] for key in VALUES}
    for key, row in result["values"].items():
        assert row["difference"] == row["B"] - row["A"], key
        low, high = row["interval"]
        assert low < row["difference"] < high, key
    assert sum(result["outcome"].values()) == 30 and result["outcome"]["lost"] != result["outcome"]["won"]
    back = compare(records, b, a, classes)
    assert back["outcome"] == {
        "won": result["outcome"]["lost"],
        "lost": result["outcome"]["won"],
        "tied": result["outcome"]["tied"],
    }
    assert back["values"]["fn"]["interval"] == pytest.approx(
        [-edge for edge in result["values"]["fn"]["interval"][::-1]]
    )


def test_paired_draws_leave_only_the_difference_to_chance():
    """One more false positive on one of 60 images gives the interval of Poisson(1), however different the images are."""
    records, predictions, classes = random_data(0, images=60)
    worse = [
        prediction | {"objects": {k: [*v] for k, v in prediction["objects"].items()}} for prediction in predictions
    ]
    for key, value in (("bbox", [1, 1, 4, 4]), ("category", "class 0"), ("score", 0.5)):
        worse[0]["objects"][key].append(value)
    result = compare(records, predictions, worse, classes)
    low, high = result["values"]["fp"]["interval"]
    assert result["values"]["fp"]["difference"] == 1 and low == 0 and 2 <= high <= 4
    assert result["outcome"] == {"won": 0, "lost": 1, "tied": 59}


def test_errors_count_before_iou():
    record = a_record(boxes=[[0, 0, 100, 100]])
    silent, wide = a_prediction(), a_prediction(boxes=[[0, 0, 100, 300]])
    near, nearer = a_prediction(boxes=[[0, 0, 100, 80]]), a_prediction(boxes=[[0, 0, 100, 81]])
    winners = [
        [row["winner"] for row in compare([record], [a], [b], ["cat"])["images"]]
        for a, b in ((silent, wide), (near, nearer), (nearer, near), (near, near))
    ]
    assert winners == [["A"], ["B"], ["A"], []]


def test_points_are_compared_by_true_positives_and_not_with_boxes():
    record = a_record(boxes=[[0, 0, 100, 100]])
    hit, miss = (a_prediction(boxes=[point], place="point") for point in ([50, 50], [200, 200]))
    result = compare([record], [miss], [hit], ["cat"])
    assert result["values"]["f1"]["difference"] == 1 and result["values"]["AP"]["interval"] is None
    assert result["outcome"]["won"] == 1
    with pytest.raises(UserError, match="points"):
        compare([record], [hit], [a_prediction(boxes=[[0, 0, 9, 9]])], ["cat"])


def test_the_largest_difference_in_errors_comes_first_and_then_in_iou():
    boxes = [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100]]
    records = [a_record(name, boxes) for name in "abcde"]
    exact = [a_prediction(name, boxes) for name in "abcde"]
    others = [
        a_prediction("a", [[0, 0, 100, 90], *boxes[1:]]),  # an IoU of 0.9
        a_prediction("b", boxes[:2]),  # one error
        a_prediction("c", [[0, 0, 100, 99.9], *boxes[1:]]),  # 0.0003 less mean IoU: tied
        a_prediction("d", [[0, 0, 100, 60], *boxes[1:]]),  # an IoU of 0.6
        a_prediction("e", [boxes[0], [0, 200, 9, 209]]),  # three errors
    ]
    for run in (exact, others):  # errors of both runs are no difference
        run[0]["objects"]["bbox"] += [[0, 300, 9, 309 + i] for i in range(5)]
        run[0]["objects"] |= {"category": ["cat"] * 8, "score": [1.0] * 8}
    result = compare(records, others, exact, ["cat"])
    assert [row["id"] for row in result["images"]] == ["e", "b", "d", "a"]
    assert result["outcome"] == {"won": 4, "lost": 0, "tied": 1}
    assert result["images"][0] == {"id": "e", "winner": "B", "errors": [3, 0], "mean_iou": [pytest.approx(1 / 3), 1.0]}


def test_values_without_ground_truth_are_undefined():
    result = compare([a_record()], [a_prediction()], [a_prediction(boxes=[[0, 0, 9, 9]])], ["cat"])
    assert result["values"]["AP"] == {"A": None, "B": None, "difference": None, "interval": None}
    assert result["values"]["fp"]["difference"] == 1 and result["outcome"] == {"won": 0, "lost": 1, "tied": 0}
