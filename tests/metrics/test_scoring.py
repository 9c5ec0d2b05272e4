"""The metrics: every rule on cases small enough to count by hand. Average precision has its own file."""

import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from boxtune.metrics.average_precision import curves
from boxtune.metrics.matching import match_images, worst_first
from boxtune.metrics.scoring import score
from boxtune.reports.score_table import format_class_table, format_table
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


def test_a_label_without_truth_costs_nothing_in_ap_but_is_counted():
    record = a_record(boxes=[[0, 0, 50, 50]])
    prediction = a_prediction(
        boxes=[[0, 0, 50, 50], [9, 9, 20, 20], [60, 60, 90, 90]],
        labels=["cat", "unicorn", "dog"],
        scores=[0.5, 0.9, 0.9],
    )
    metrics = score_one(record, prediction)
    assert metrics["AP"] == pytest.approx(1.0)
    assert counts(metrics) == (1, 2, 0)
    assert metrics["unknown_label_boxes"] == 1  # dog is a class of the data set, though not of this split
    assert metrics["per_class"]["dog"]["fp"] == 1
    assert metrics["per_class"]["dog"]["AP"] is None
    assert list(metrics["per_class"]) == ["cat", "dog"]


def test_score_source_names_the_scorer_whose_column_ranks():
    record = a_record(boxes=[[0, 0, 50, 50]])
    boxes = [[0, 0, 50, 50], [60, 60, 90, 90]]
    assert score_one(record, a_prediction(boxes=boxes))["score_source"] == "constant"
    varied = a_prediction(boxes=boxes, scores=[0.9, 0.2])
    assert score_one(record, varied)["score_source"] == "predictions"
    varied["objects"] |= {"score_label": [0.9, 0.1], "score_spread": [0.9, 0.2]}
    assert score_one(record, varied)["score_source"] == "spread"


def test_constant_score_ap_ignores_scores_and_lies_below_well_ranked_ones():
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


def test_iou_of_exactly_the_threshold_matches_and_just_below_does_not():
    record = a_record(boxes=[[0, 0, 10, 10]])
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 5]]))) == (1, 0, 0)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 4.99]]))) == (0, 1, 1)
    assert counts(score_one(record, a_prediction(boxes=[[0, 0, 10, 5]]), iou_threshold=0.75)) == (0, 1, 1)


def test_the_best_pair_is_made_first():
    # The first answer overlaps both truths (IoU 0.6 and 0.9), the second only the right one (0.8).
    record = a_record(boxes=[[0, 0, 100, 10], [30, 0, 130, 10]])
    prediction = a_prediction(boxes=[[25, 0, 125, 10], [41, 0, 141, 10]])
    (image,) = match_images([record], [prediction])
    assert [(i, j) for i, j, _ in image.pairs] == [(0, 1)]
    assert image.pairs[0][2] == pytest.approx(95 / 105)
    assert (image.false, image.missed, image.duplicates) == ([1], [0], [1])


def test_duplicates_are_false_positives_on_truth_already_matched():
    record = a_record(boxes=[[0, 0, 10, 10], [100, 100, 120, 120]])
    prediction = a_prediction(boxes=[[0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 3], [200, 200, 210, 210]])
    metrics = score_one(record, prediction)
    assert counts(metrics) == (1, 4, 1)
    assert metrics["duplicate_boxes"] == 2
    other_label = a_prediction(boxes=[[0, 0, 10, 10], [0, 0, 10, 10]], labels=["cat", "dog"])
    assert score_one(record, other_label)["duplicate_boxes"] == 0


def test_ignored_regions_are_neither_for_nor_against():
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


def test_a_box_that_matches_truth_is_a_hit_even_inside_an_ignored_region():
    record = a_record(boxes=[[0, 0, 100, 100], [10, 10, 30, 30]], ignore=[True, False])
    assert counts(score_one(record, a_prediction(boxes=[[10, 10, 30, 30]]))) == (1, 0, 0)


def test_mean_iou_over_truth_needs_no_threshold_and_counts_misses_as_zero():
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


def test_f1_macro_covers_classes_with_truth_or_predictions():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10]], labels=["cat", "cat"])
    prediction = a_prediction(boxes=[[0, 0, 10, 10], [50, 50, 60, 60]], labels=["cat", "dog"])
    metrics = score_one(record, prediction, ["cat", "dog", "cow"])
    # cat: 1 TP, 1 FN → 2/3; dog: 1 FP → 0; cow appears nowhere.
    assert metrics["matching"]["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    record["objects"] = {key: [*column, column[0]] for key, column in record["objects"].items()}
    record["objects"]["category"][-1] = "owl"  # truth and no hit
    assert score_one(record, prediction, ["cat", "dog", "owl"])["matching"]["f1_macro"] == pytest.approx((2 / 3) / 3)
    assert metrics["per_class"]["cow"] == {
        "AP": None, "AP50": None, "truth": 0, "predicted": 0, "tp": 0, "fp": 0, "fn": 0,
        "precision": None, "recall": None, "f1": None,
    }  # fmt: skip


def test_truth_of_a_class_that_the_data_set_does_not_name_is_still_scored():
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


# ---- mistakes, confusion, sizes, intervals -----------------------------------------------------------------------------


def test_every_kind_of_mistake_is_told_apart():
    record = a_record(boxes=[[0, 0, 100, 100], [200, 0, 300, 100], [0, 200, 50, 250]], labels=["cat", "dog", "cat"])
    record["objects"]["ignore"][2] = True
    prediction = a_prediction(
        boxes=[
            *([0, 0, 100, 100], [0, 0, 100, 90]),  # a hit, and its duplicate
            *([200, 0, 300, 100], [200, 0, 300, 100]),  # a dog called a cat, and called an owl
            [200, 60, 300, 160],  # IoU 0.25 with the dog
            [200, 95, 300, 195],  # IoU 0.026: nothing
            [0, 200, 50, 250],  # on ignored truth: not counted
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
        # Cat and owl lie on the dog alike: the first that stands is its partner.
        "matrix": [[1, 0, 0, 0], [1, 0, 0, 0], [1, 2, 1, 0]],
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_confusion_mistakes_and_sizes_sum_to_what_matching_counts(seed):
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


def test_truth_and_false_positives_have_their_own_sizes():
    record = a_record(boxes=[[0, 0, 32, 31], [100, 0, 132, 32], [200, 0, 296, 95], [300, 0, 396, 96]])
    prediction = a_prediction(boxes=[[0, 0, 32, 31], [0, 200, 10, 210], [200, 200, 400, 400], [300, 0, 396, 72]])
    row = {"truth": 1, "tp": 1, "fn": 0, "recall": 1.0, "mean_iou_gt": 1.0, "fp": 1}
    missed = {"truth": 2, "tp": 0, "fn": 2, "recall": 0.0, "mean_iou_gt": 0.0, "fp": 0}
    assert score_one(record, prediction)["sizes"] == {
        "small": row,
        "medium": missed,
        "large": row | {"mean_iou_gt": 0.75},
    }


def test_intervals_hold_the_value_and_narrow_with_more_images():
    widths = []
    for images in (20, 320):
        metrics = score(*random_data(1, images=images))
        values = metrics | metrics["matching"]
        for key, (low, high) in metrics["intervals"].items():
            assert 0 <= low < values[key] < high <= 1, key
        widths.append(metrics["intervals"]["f1"][1] - metrics["intervals"]["f1"][0])
    assert 2 < widths[0] / widths[1] < 8  # 4 = √16


def test_clicks_are_confused_too_but_have_no_size_and_no_average_precision():
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
    ids=["no images", "no boxes", "no truth", "only ignored truth", "no answers"],
)
def test_undefined_is_none_never_nan(records, predictions):
    metrics = score(records, predictions, ["cat"])
    json.dumps(metrics, allow_nan=False)
    truth = any(not all(record["objects"]["ignore"]) for record in records)
    assert metrics["AP"] == metrics["AP_constant_score"]["mean"] == (0.0 if truth else None)
    assert metrics["AP_large"] is None
    assert metrics["matching"]["recall"] == metrics["matching"]["mean_iou_gt"] == (0.0 if truth else None)
    assert metrics["matching"]["mean_iou_tp"] is None
    curves(records, predictions, ["cat"])


def test_metrics_have_exactly_the_documented_keys():
    metrics = score_one(a_record(boxes=[[0, 0, 9, 9]]), a_prediction(), provenance={"split": "test"})
    assert list(metrics) == [
        "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100", "AP_constant_score", "score_source",
        "per_class", "matching", "parse", "empty_images", "unknown_label_boxes", "duplicate_boxes", "mistakes", "confusion",
        "sizes", "intervals", "points", "calibration", "provenance",
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


def test_the_order_of_objects_in_an_answer_does_not_matter():
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


def test_predictions_of_another_order_are_refused():
    records, predictions, classes = random_data(7, images=3)
    with pytest.raises(ValueError, match="same ids"):
        score(records, predictions[::-1], classes)


def test_scoring_starts_without_torch_and_transformers():
    code = (
        "import sys, boxtune.metrics.scoring, boxtune.reports.report, boxtune.answers.predictions, boxtune.common.drawing;"
        "print([name for name in ('torch', 'transformers', 'datasets', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- points ------------------------------------------------------------------------------------------------------------


def test_points_hit_the_box_they_lie_in_one_to_one():
    record = a_record(
        boxes=[[0, 0, 100, 100], [40, 40, 60, 60], [200, 200, 220, 220], [300, 300, 400, 400]],
        labels=["cat", "cat", "dog", "cat"],
        ignore=[False, False, False, True],
    )
    prediction = a_prediction(
        # near the centre of both cats; a second cat inside the large one; a dog's place called cat; inside ignored; border
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
def test_clicks_in_overlapping_boxes_are_shared_out_to_hit_as_many_as_they_can(last):
    # Each click but the last lies in its own box and in the next one's; only one way serves all.
    record = a_record(boxes=[[10 * i, 0, 10 * i + 15, 10] for i in range(5)])
    clicks = [[10 * i + 12, 5] for i in range(4)] + [[last, 5]]
    for order in (clicks, clicks[::-1], clicks[2:] + clicks[:2]):
        assert score_one(record, a_prediction(boxes=order, place="point"))["points"]["tp"] == 5


def test_a_point_on_the_border_hits_and_a_second_click_is_a_duplicate():
    record = a_record(boxes=[[10, 10, 20, 20]])
    metrics = score_one(record, a_prediction(boxes=[[20, 20], [11, 11], [20.5, 20]], place="point"))
    assert (metrics["points"]["tp"], metrics["points"]["fp"], metrics["duplicate_boxes"]) == (1, 2, 1)


# ---- worst first, tables -----------------------------------------------------------------------------------------------


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


def render(table):
    console = Console(width=160, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def row_of(text, title):
    """The cells of a row, without the table's lines."""
    line = next(line for line in text.splitlines() if title in line)
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_two_runs_class_by_class_fit_a_narrow_terminal():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10]], labels=["nutrition-table", "a name of many words"])
    metrics = score_one(record, a_prediction(boxes=[[0, 0, 10, 10]]), ["nutrition-table", "a name of many words"])
    console = Console(width=80, file=io.StringIO())
    console.print(format_class_table({"base": metrics, "tuned": metrics}))
    assert "…" not in console.file.getvalue()
    assert row_of(console.file.getvalue(), "nutrition-table").count("0.000") == 4


def test_tables_show_runs_side_by_side_with_their_difference():
    record = a_record(boxes=[[0, 0, 10, 10], [20, 0, 30, 10]], labels=["cat", "[bold]dog"])
    classes = ["cat", "[bold]dog"]
    base = score_one(record, a_prediction(problems=["unparsable"]), classes)
    tuned = score_one(record, a_prediction(boxes=[[0, 0, 10, 10]]), classes)
    text = render(format_table({"base": base, "tuned": tuned}))
    assert row_of(text, "AP50") == ["AP50", "0.000", "0.500", "+0.500"]
    assert row_of(text, "false negatives") == ["false negatives", "2", "1", "-1"]
    assert row_of(text, "precision") == ["precision", "–", "1.000", "–"]
    assert row_of(text, "unparsable") == ["unparsable answers", "1", "0", "-1"]
    alone = render(format_table({"tuned": tuned}))
    assert "difference" not in alone
    assert row_of(alone, "AP50") == ["AP50", "0.500", "0.500 to 0.500"]  # one image, drawn again and again
    assert row_of(alone, "AP75") == ["AP75", "0.500", ""]
    assert row_of(render(format_table({"a": base, "b": tuned, "c": tuned})), "AP50") == [
        "AP50",
        "0.000",
        "0.500",
        "0.500",
    ]
    assert row_of(render(format_class_table({"tuned": tuned})), "dog") == [
        "[bold]dog",
        "1",
        "0.000",
        "0.000",
        "0",
        "0",
        "1",
    ]
