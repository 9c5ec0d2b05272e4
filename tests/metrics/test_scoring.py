"""The metrics: every rule on cases small enough to count by hand. Average precision has a file of its own."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from boxtune.metrics.average_precision import curves
from boxtune.metrics.matching import match_images, worst_first
from boxtune.metrics.scoring import score
from tests.helpers.records import ROOT
from tests.helpers.scoring import a_prediction, a_record, random_data


def score_one(record, prediction, classes=("cat", "dog"), **kwargs):
    return score([record], [prediction], list(classes), **kwargs)


def counts(metrics):
    return tuple(metrics["matching"][key] for key in ("tp", "fp", "fn"))


# ---- average precision -------------------------------------------------------------------------------------------------


def test_perfect_predictions_score_one():
    records, _, classes = random_data(3, crowd=0)
    predictions = [a_prediction(r["id"], r["objects"]["bbox"], r["objects"]["category"]) for r in records]
    metrics = score(records, predictions, classes)
    assert metrics["AP"] == metrics["AP50"] == metrics["AP_small"] == metrics["AR100"] == pytest.approx(1.0)
    assert metrics["AP_constant_score"] == {"mean": pytest.approx(1.0), "spread": pytest.approx(0.0)}
    matching = metrics["matching"]
    for key in ("precision", "recall", "f1", "f1_macro", "mean_iou_tp", "mean_iou_gt"):
        assert matching[key] == pytest.approx(1.0), key
    assert matching["fp"] == matching["fn"] == 0


def test_a_label_without_ground_truth_costs_nothing_in_ap_but_is_counted():
    record = a_record(boxes=[[0, 0, 50, 50]])
    prediction = a_prediction(
        boxes=[[0, 0, 50, 50], [9, 9, 20, 20], [60, 60, 90, 90]],
        labels=["cat", "unicorn", "dog"],
        scores=[0.5, 0.9, 0.9],
    )
    metrics = score_one(record, prediction)
    assert metrics["AP"] == pytest.approx(1.0)
    assert counts(metrics) == (1, 2, 0)
    assert metrics["unknown_label_boxes"] == 1  # dog is a class of the dataset, but this split has none
    assert metrics["per_class"]["dog"]["fp"] == 1
    assert metrics["per_class"]["dog"]["AP"] is None
    assert list(metrics["per_class"]) == ["cat", "dog"]


def test_score_source_names_the_scorer_that_the_scores_come_from():
    record = a_record(boxes=[[0, 0, 50, 50]])
    boxes = [[0, 0, 50, 50], [60, 60, 90, 90]]
    assert score_one(record, a_prediction(boxes=boxes))["score_source"] == "constant"
    varied = a_prediction(boxes=boxes, scores=[0.9, 0.2])
    assert score_one(record, varied)["score_source"] == "predictions"
    varied["objects"] |= {"score_label": [0.9, 0.1], "score_spread": [0.9, 0.2]}
    assert score_one(record, varied)["score_source"] == "spread"


def test_constant_score_ap_ignores_the_scores_and_is_lower_than_the_ap_of_good_scores():
    records, predictions, classes = random_data(4, images=40, crowd=0)
    for prediction, image in zip(predictions, match_images(records, predictions), strict=True):
        hits = {i for i, _, _ in image.pairs}
        n = len(prediction["objects"]["score"])
        prediction["objects"]["score"] = [0.9 if i in hits else 0.1 for i in range(n)]
    ranked = score(records, predictions, classes)
    for prediction in predictions:
        prediction["objects"]["score"] = [0.5] * len(prediction["objects"]["score"])
    equal = score(records, predictions, classes)
    assert ranked["AP_constant_score"] == equal["AP_constant_score"]
    assert ranked["AP"] > ranked["AP_constant_score"]["mean"] + 0.05
    constant = equal["AP_constant_score"]
    assert 0 < constant["spread"] < 0.1
    assert abs(equal["AP"] - constant["mean"]) < 6 * constant["spread"]


# ---- matching, counted by hand -----------------------------------------------------------------------------------------


def test_matching_needs_the_same_label_after_strip():
    record = a_record(boxes=[[0, 0, 10, 10]])
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 10]], labels=[" cat "]))) == (1, 0, 0)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 10]], labels=["Cat"]))) == (0, 1, 1)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 10]], labels=["dog"]))) == (0, 1, 1)


def test_outer_space_is_no_part_of_a_class_or_a_label():
    record = a_record(boxes=[[0, 0, 10, 10]], labels=[" dog "])
    metrics = score_one(record, a_prediction(boxes=[[0, 0, 10, 10]], labels=["\tdog\n"]), [" cat ", " dog "])
    assert list(metrics["per_class"]) == ["cat", "dog"] and metrics["AP"] == pytest.approx(1)
    assert metrics["per_class"]["dog"]["tp"] == 1 and metrics["unknown_label_boxes"] == 0
    assert metrics["confusion"]["matrix"] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_iou_of_exactly_the_threshold_matches_and_just_below_does_not():
    record = a_record(boxes=[[0, 0, 10, 10]])
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 5]]))) == (1, 0, 0)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 4.99]]))) == (0, 1, 1)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 5]]), iou_threshold=0.75)) == (0, 1, 1)


def test_the_pair_with_the_highest_iou_is_matched_first():
    # The first prediction overlaps both boxes (IoU 0.60 and 0.90), the second too (0.42 and 0.80).
    record = a_record(boxes=[[0, 0, 100, 10], [30, 0, 130, 10]])
    prediction = a_prediction(boxes=[[25, 0, 125, 10], [41, 0, 141, 10]])
    (image,) = match_images([record], [prediction])
    assert [(i, j) for i, j, _ in image.pairs] == [(0, 1)]
    assert image.pairs[0][2] == pytest.approx(95 / 105)
    assert (image.false_positives, image.missed, image.duplicates) == ([1], [0], [1])
    # Without a threshold the remaining prediction and box are a pair too.
    assert image.ious == pytest.approx([59 / 141, 95 / 105])


def test_duplicates_are_false_positives_on_ground_truth_that_is_already_matched():
    record = a_record(boxes=[[0, 0, 10, 10], [100, 100, 120, 120]])
    prediction = a_prediction(boxes=[[0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 3], [200, 200, 210, 210]])
    metrics = score_one(record, prediction)
    assert counts(metrics) == (1, 4, 1)
    assert metrics["duplicate_boxes"] == 2
    other_label = a_prediction(boxes=[[0, 0, 10, 10], [0, 0, 10, 10]], labels=["cat", "dog"])
    assert score_one(record, other_label)["duplicate_boxes"] == 0


def test_predictions_inside_ignored_boxes_are_not_counted():
    record = a_record(boxes=[[0, 0, 100, 100], [200, 200, 220, 220]], ignore=[True, False])
    inside = [10, 10, 30, 30]
    half_inside = [90, 0, 110, 20]
    mostly_outside = [91, 0, 111, 20]
    metrics = score_one(record, a_prediction(boxes=[inside, half_inside, mostly_outside, [200, 200, 220, 220]]))
    assert counts(metrics) == (1, 1, 0)
    assert metrics["per_class"]["cat"]["predicted"] == 2
    assert metrics["per_class"]["cat"]["truth"] == 1
    assert metrics["matching"]["mean_iou_gt"] == 1.0
    assert counts(score_one(record, a_prediction(boxes=[inside], labels=["dog"]))) == (0, 1, 1)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 100, 100]] * 3))) == (0, 0, 1)


def test_a_box_that_matches_ground_truth_is_a_true_positive_even_inside_an_ignored_box():
    record = a_record(boxes=[[0, 0, 100, 100], [10, 10, 30, 30]], ignore=[True, False])
    assert counts(score_one(record, a_prediction(boxes=[[10, 10, 30, 30]]))) == (1, 0, 0)


def test_mean_iou_over_ground_truth_has_no_threshold_and_counts_misses_as_zero():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    prediction = a_prediction(
        boxes=[[0, 0, 10, 10], [20, 0, 30, 2], [40, 0, 50, 10]],  # IoU 1, 0.2, and a wrong label
        labels=["cat", "cat", "dog"],
    )
    matching = score_one(record, prediction)["matching"]
    assert matching["mean_iou_tp"] == 1.0
    assert matching["mean_iou_gt"] == pytest.approx((1 + 0.2 + 0 + 0) / 4)
    assert matching["recall"] == 0.25
    assert matching["precision"] == pytest.approx(1 / 3)


def test_f1_macro_covers_classes_with_ground_truth_or_predictions():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10]], labels=["cat", "cat"])
    prediction = a_prediction(boxes=[[0, 0, 10, 10], [50, 50, 60, 60]], labels=["cat", "dog"])
    metrics = score_one(record, prediction, ["cat", "dog", "cow"])
    # cat: 1 TP, 1 FN → 2/3; dog: 1 FP → 0; cow appears nowhere.
    assert metrics["matching"]["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    record["objects"] = {key: [*column, column[0]] for key, column in record["objects"].items()}
    record["objects"]["category"][-1] = "owl"  # ground truth without a true positive
    assert score_one(record, prediction, ["cat", "dog", "owl"])["matching"]["f1_macro"] == pytest.approx((2 / 3) / 3)
    assert metrics["per_class"]["cow"] == {
        "AP": None, "AP50": None, "truth": 0, "predicted": 0, "tp": 0, "fp": 0, "fn": 0,
        "precision": None, "recall": None, "f1": None,
    }  # fmt: skip


def test_ground_truth_with_a_label_outside_the_classes_is_still_scored():
    metrics = score_one(a_record(boxes=[[0, 0, 10, 10]], labels=["owl"]), a_prediction(), ["cat"])
    assert metrics["per_class"]["owl"]["fn"] == 1
    assert metrics["AP"] == 0.0


def test_empty_images_and_parse_problems_are_counted():
    records = [
        a_record("a"),
        a_record("b"),
        a_record("c", [[0, 0, 9, 9]]),
        a_record("d", [[0, 0, 9, 9]], ignore=[True]),
    ]
    predictions = [
        a_prediction("a", [[0, 0, 9, 9]], problems=["clipped", "clipped", "fence"]),
        a_prediction("b", problems=["unparsable"]),
        a_prediction("c", [[0, 0, 9, 9], [20, 20, 30, 30]]),
        a_prediction("d", [[0, 0, 9, 9]]),
    ]
    metrics = score(records, predictions, ["cat"])
    assert metrics["empty_images"] == {"images": 3, "with_false_positives": 1}
    assert metrics["parse"] == {"images": 4, "clean": 2, "problems": {"clipped": 2, "fence": 1, "unparsable": 1}}


# ---- error types, confusion, sizes, intervals --------------------------------------------------------------------------


def test_every_error_type_is_recognized():
    record = a_record(boxes=[[0, 0, 100, 100], [200, 0, 300, 100], [0, 200, 50, 250]], labels=["cat", "dog", "cat"])
    record["objects"]["ignore"][2] = True
    prediction = a_prediction(
        boxes=[
            *([0, 0, 100, 100], [0, 0, 100, 90]),  # a true positive and its duplicate
            *([200, 0, 300, 100], [200, 0, 300, 100]),  # a dog labeled as a cat, and as an owl
            [200, 60, 300, 160],  # IoU 0.25 with the dog
            [200, 95, 300, 195],  # IoU 0.026: background
            [0, 200, 50, 250],  # on ignored ground truth: not counted
        ],
        labels=["cat", "cat", "cat", "owl", "dog", "dog", "cat"],
    )
    metrics = score_one(record, prediction)
    assert metrics["mistakes"] == {
        "unknown_label": 1, "duplicate": 1, "wrong_class": 1, "localisation": 1, "background": 1,
    }  # fmt: skip
    assert metrics["confusion"] == {
        "rows": ["cat", "dog", "background"],
        "columns": ["cat", "dog", "unknown label", "background"],
        # Cat and owl have the same IoU with the dog; the first of them is matched with it.
        "matrix": [[1, 0, 0, 0], [1, 0, 0, 0], [1, 2, 1, 0]],
    }


def test_a_box_that_barely_overlaps_another_class_is_background():
    record = a_record(boxes=[[0, 0, 100, 100]], labels=["dog"])
    for bottom, kind in ((49, "background"), (50, "wrong_class")):  # IoU 0.49 and 0.5
        mistakes = score_one(record, a_prediction(boxes=[[0, 0, 100, bottom]]))["mistakes"]
        assert [name for name, count in mistakes.items() if count] == [kind]


def test_the_error_type_of_a_point_depends_on_the_box_that_it_is_in():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], labels=["cat", "dog", "dog"])
    record["objects"]["ignore"][2] = True
    points = [[5, 5], [6, 6], [25, 5], [15, 5], [25, 6], [45, 5]]
    labels = ["cat", "cat", "cat", "cat", "owl", "cat"]
    assert score_one(record, a_prediction(boxes=points, labels=labels, place="point"))["mistakes"] == {
        "unknown_label": 1, "duplicate": 1, "wrong_class": 1, "localisation": 0, "background": 2,
    }  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_confusion_error_types_and_sizes_sum_to_the_counts_of_the_matching(seed):
    records, predictions, classes = random_data(seed)
    for prediction in predictions[::2]:
        prediction["objects"]["category"] = [
            "unicorn" if i % 5 == 4 else label for i, label in enumerate(prediction["objects"]["category"])
        ]
    metrics = score(records, predictions, classes)
    matrix, per_class, total = np.array(metrics["confusion"]["matrix"]), metrics["per_class"], metrics["matching"]
    assert matrix[:-1].sum(axis=1).tolist() == [row["truth"] for row in per_class.values()]
    assert matrix[:, : len(classes)].sum(axis=0).tolist() == [row["predicted"] for row in per_class.values()]
    assert matrix.diagonal()[:-1].tolist() == [row["tp"] for row in per_class.values()]
    assert matrix[:, :-1].sum() == total["tp"] + total["fp"] and matrix[-1, -1] == 0
    assert sum(metrics["mistakes"].values()) == total["fp"]
    for key in ("tp", "fp", "fn"):
        assert sum(row[key] for row in metrics["sizes"].values()) == total[key]
    share = sum(row["truth"] * (row["mean_iou_gt"] or 0) for row in metrics["sizes"].values())
    assert share / (total["tp"] + total["fn"]) == pytest.approx(total["mean_iou_gt"])


def test_ground_truth_and_false_positives_are_counted_by_their_own_sizes():
    record = a_record(boxes=[[0, 0, 32, 31], [100, 0, 132, 32], [200, 0, 296, 95], [300, 0, 396, 96]])
    prediction = a_prediction(boxes=[[0, 0, 32, 31], [0, 200, 10, 210], [200, 200, 400, 400], [300, 0, 396, 72]])
    row = {"truth": 1, "tp": 1, "fn": 0, "recall": 1.0, "mean_iou_gt": 1.0, "fp": 1}
    missed = {"truth": 2, "tp": 0, "fn": 2, "recall": 0.0, "mean_iou_gt": 0.0, "fp": 0}
    assert score_one(record, prediction)["sizes"] == {
        "small": row,
        "medium": missed,
        "large": row | {"mean_iou_gt": 0.75},
    }


def test_intervals_contain_the_value_and_narrow_with_more_images():
    widths = []
    for images in (20, 320):
        metrics = score(*random_data(1, images=images))
        values = metrics | metrics["matching"]
        for key, (low, high) in metrics["intervals"].items():
            assert 0 <= low < values[key] < high <= 1, key
        widths.append(metrics["intervals"]["f1"][1] - metrics["intervals"]["f1"][0])
    assert 2 < widths[0] / widths[1] < 8  # 4 = √16


def test_intervals_of_boxes_that_match_at_one_threshold_only():
    """IoU 0.52 is enough for AP50, which is one of the ten thresholds of AP."""
    records = [a_record(str(i), [[0, 0, 100, 100]]) for i in range(5)]
    predictions = [a_prediction(str(i), [[0, 0, 100, 52]]) for i in range(5)]
    metrics = score(records, predictions, ["cat"])
    assert (metrics["AP50"], metrics["AP"]) == pytest.approx((1, 0.1))
    assert metrics["intervals"]["AP50"] == pytest.approx([1, 1])
    assert metrics["intervals"]["AP"] == pytest.approx([0.1, 0.1])


def test_points_have_a_confusion_matrix_but_no_sizes_and_no_average_precision():
    record = a_record(boxes=[[0, 0, 100, 100], [200, 200, 220, 220]], labels=["cat", "dog"])
    prediction = a_prediction(boxes=[[50, 50], [210, 210], [210, 205]], labels=["cat", "cat", "cat"], place="point")
    metrics = score_one(record, prediction)
    assert metrics["confusion"]["matrix"] == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert metrics["mistakes"]["wrong_class"] == 2
    assert metrics["sizes"] is metrics["intervals"]["AP"] is metrics["intervals"]["mean_iou_gt"] is None
    assert metrics["intervals"]["f1"] == [pytest.approx(0.4)] * 2


# ---- undefined, order, determinism -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "records, predictions",
    [
        ([], []),
        ([a_record()], [a_prediction()]),
        ([a_record()], [a_prediction(boxes=[[0, 0, 9, 9]])]),
        ([a_record(boxes=[[0, 0, 9, 9]], ignore=[True])], [a_prediction(boxes=[[0, 0, 9, 9]])]),
        ([a_record(boxes=[[0, 0, 9, 9]])], [a_prediction()]),
    ],
    ids=["no images", "no boxes", "no ground truth", "only ignored ground truth", "no predictions"],
)
def test_undefined_values_are_none_and_never_nan(records, predictions):
    metrics = score(records, predictions, ["cat"])
    json.dumps(metrics, allow_nan=False)
    has_gt = any(not all(record["objects"]["ignore"]) for record in records)
    assert metrics["AP"] == metrics["AP_constant_score"]["mean"] == (0.0 if has_gt else None)
    assert metrics["AP_large"] is None
    assert metrics["matching"]["recall"] == metrics["matching"]["mean_iou_gt"] == (0.0 if has_gt else None)
    assert metrics["matching"]["mean_iou_tp"] is None
    curves(records, predictions, ["cat"])


def test_metrics_have_exactly_the_documented_keys():
    metrics = score_one(a_record(boxes=[[0, 0, 9, 9]]), a_prediction(), provenance={"split": "test"})
    assert list(metrics) == [
        "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100", "AP_constant_score", "score_source",
        "per_class", "matching", "parse", "empty_images", "absent", "unknown_label_boxes", "duplicate_boxes", "mistakes",
        "misses", "confusion", "sizes", "intervals", "points", "calibration", "provenance",
    ]  # fmt: skip
    assert list(metrics["matching"]) == [
        "iou_threshold", "tp", "fp", "fn", "precision", "recall", "f1", "f1_macro", "mean_iou_tp", "mean_iou_gt",
    ]  # fmt: skip
    assert metrics["provenance"] == {"split": "test"}
    assert metrics["points"] is None


def test_scoring_is_deterministic_and_does_not_change_its_input():
    records, predictions, classes = random_data(5)
    before = json.dumps([records, predictions])
    assert score(records, predictions, classes) == score(records, predictions, classes)
    assert json.dumps([records, predictions]) == before


def test_the_order_of_objects_in_a_prediction_does_not_matter():
    records, predictions, classes = random_data(6)
    expected = score(records, predictions, classes)
    for prediction in predictions:
        objects = prediction["objects"]
        order = random.Random(1).sample(range(len(objects["score"])), len(objects["score"]))
        prediction["objects"] = {key: [column[i] for i in order] for key, column in objects.items()}
    shuffled = score(records, predictions, classes)
    assert shuffled["AP_constant_score"] == expected["AP_constant_score"]
    assert shuffled["AP"] == pytest.approx(expected["AP"])
    assert counts(shuffled) == counts(expected)
    for key in ("mean_iou_tp", "mean_iou_gt", "f1_macro"):
        assert shuffled["matching"][key] == pytest.approx(expected["matching"][key])


def test_predictions_in_another_order_are_rejected():
    records, predictions, classes = random_data(7, images=3)
    with pytest.raises(ValueError, match="same ids"):
        score(records, predictions[::-1], classes)


def test_scoring_starts_without_torch_and_transformers():
    code = (
        "import sys, boxtune.metrics.scoring, boxtune.reports.report, boxtune.answers.prediction_file, boxtune.common.drawing;"
        "print([name for name in ('torch', 'transformers', 'datasets', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- points ------------------------------------------------------------------------------------------------------------


def test_points_match_the_box_that_contains_them_one_to_one():
    record = a_record(
        boxes=[[0, 0, 100, 100], [40, 40, 60, 60], [200, 200, 220, 220], [300, 300, 400, 400]],
        labels=["cat", "cat", "dog", "cat"],
        ignore=[False, False, False, True],
    )
    prediction = a_prediction(
        # inside both cats; inside the large cat only; on the dog, labeled as a cat; inside the ignored box; on a border
        boxes=[[50, 51], [20, 20], [210, 210], [350, 350], [100, 0]],
        labels=["cat", "cat", "cat", "cat", "dog"],
        place="point",
    )
    metrics = score_one(record, prediction)
    assert metrics["points"] == {
        "tp": 2, "fp": 2, "fn": 1, "precision": 0.5, "recall": pytest.approx(2 / 3), "f1": pytest.approx(4 / 7),
    }  # fmt: skip
    assert metrics["AP"] is metrics["AP_constant_score"]["mean"] is metrics["matching"]["mean_iou_gt"] is None
    assert metrics["matching"]["tp"] is None
    assert metrics["per_class"]["cat"]["tp"] == 2
    json.dumps(metrics, allow_nan=False)
    assert curves([record], [prediction], ["cat", "dog"]) == {}


@pytest.mark.parametrize("last", [2, 53], ids=["first box", "last box"])
def test_points_in_overlapping_boxes_match_as_many_boxes_as_possible(last):
    # Each point but the last is in its own box and in the next one; only one assignment matches all of them.
    record = a_record(boxes=[[10 * i, 0, 10 * i + 15, 10] for i in range(5)])
    clicks = [[10 * i + 12, 5] for i in range(4)] + [[last, 5]]
    for order in (clicks, clicks[::-1], clicks[2:] + clicks[:2]):
        assert score_one(record, a_prediction(boxes=order, place="point"))["points"]["tp"] == 5


def test_a_point_on_the_border_matches_and_a_second_point_is_a_duplicate():
    record = a_record(boxes=[[10, 10, 20, 20]])
    metrics = score_one(record, a_prediction(boxes=[[20, 20], [11, 11], [20.5, 20]], place="point"))
    assert (metrics["points"]["tp"], metrics["points"]["fp"], metrics["duplicate_boxes"]) == (1, 2, 1)


# ---- worst first -------------------------------------------------------------------------------------------------------


def test_worst_images_come_first():
    records = [a_record(name, [[0, 0, 10, 10]]) for name in "abcd"]
    predictions = [
        a_prediction("a", [[0, 0, 10, 10]]),
        a_prediction("b", [[0, 0, 10, 6]]),
        a_prediction("c", [[50, 50, 60, 60]]),
        a_prediction("d"),
    ]
    scores = match_images(records, predictions)
    assert [records[i]["id"] for i in worst_first(scores)] == ["c", "d", "b", "a"]
    assert [image.errors for image in scores] == [0, 0, 2, 1]
