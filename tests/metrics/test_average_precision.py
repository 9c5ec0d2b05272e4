"""Average precision against pycocotools, to nine digits, and what uses it: constant scores and bootstrap draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxtune.metrics.average_precision import constant_score_ap, curves, evaluate_coco
from boxtune.metrics.bootstrap import bootstrap, draws
from boxtune.metrics.coco_matching import AREAS, CocoBoxes
from boxtune.metrics.matching import match_images
from boxtune.metrics.scoring import score
from tests.helpers.scoring import a_prediction, a_record, pycocotools_stats, random_data


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": True},
        {"crowd": 0},
        {"crowd": 0.6},
        {"classes": 1},
        {"empty": 0.8},
        {"images": 1, "empty": 0},
        {"classes": 9, "images": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_pycocotools(options, seed):
    records, predictions, classes = random_data(seed, **options)
    metrics = score(records, predictions, classes)
    stats, precision = pycocotools_stats(records, predictions, classes)
    for name, expected in stats.items():
        assert metrics[name] == (None if expected is None else pytest.approx(expected, abs=1e-9)), name
    for i, name in enumerate(classes):
        expected = precision[:, :, i, 0, 2]
        row = metrics["per_class"][name]
        if expected.max() == -1:
            assert row["AP"] is row["AP50"] is None
        else:
            assert row["AP"] == pytest.approx(expected.mean(), abs=1e-9)
            assert row["AP50"] == pytest.approx(expected[0].mean(), abs=1e-9)
    plotted = curves(records, predictions, classes)
    for i, name in enumerate(classes):
        if name in plotted:
            np.testing.assert_allclose(plotted[name]["precision"], precision[0, :, i, 0, 2], atol=1e-9)
            assert plotted[name]["recall"][::50] == [0.0, 0.5, 1.0]
        else:
            assert precision[0, 0, i, 0, 2] == -1


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_stated_areas_decide_the_size_as_in_pycocotools(seed):
    """Areas of masks, smaller than their boxes; some objects have none."""
    records, predictions, classes = random_data(seed)
    rng = np.random.default_rng(seed)
    by_box = score(records, predictions, classes)
    for record in records[:-5]:
        areas = [(x1 - x0) * (y1 - y0) * rng.uniform(0.2, 1) for x0, y0, x1, y1 in record["objects"]["bbox"]]
        record["objects"]["area"] = [None if rng.random() < 0.2 else area for area in areas]
    metrics, (stats, _) = score(records, predictions, classes), pycocotools_stats(records, predictions, classes)
    for name, expected in stats.items():
        assert metrics[name] == pytest.approx(expected, abs=1e-9), name
    assert metrics["AP"] == by_box["AP"]
    assert all(metrics[f"AP_{size}"] != by_box[f"AP_{size}"] for size in ("small", "medium", "large"))


@pytest.mark.parametrize(
    ("area", "size"), [(None, "large"), (0, "small"), (1024, "small"), (1024.5, "medium"), (9217, "large")]
)
def test_an_object_has_the_size_of_its_stated_area(area, size):
    """The box is 100 × 100. COCO's limits belong to both sizes."""
    record, prediction = a_record(boxes=[[0, 0, 100, 100]]), a_prediction(boxes=[[0, 0, 100, 100]])
    record["objects"]["area"] = [area]
    metrics = score([record], [prediction], ["cat"])
    assert metrics["AP"] == pytest.approx(1) and metrics[f"AP_{size}"] == pytest.approx(1)
    assert pycocotools_stats([record], [prediction], ["cat"])[0][f"AP_{size}"] == pytest.approx(1)


def test_interpolated_precision_counted_by_hand():
    """Three ground truth boxes; the predictions in order of their scores are a hit, a false positive and a hit."""
    record = a_record(boxes=[[0, 0, 40, 40], [100, 0, 140, 40], [200, 0, 240, 40]])
    prediction = a_prediction(boxes=[[0, 0, 40, 40], [300, 300, 340, 340], [100, 0, 140, 40]], scores=[0.9, 0.8, 0.7])
    result = evaluate_coco([record], [prediction], ["cat"])
    # Precision is 1/1 up to recall 1/3 and 2/3 up to recall 2/3; a higher recall is not reached.
    expected = [1.0] * 34 + [2 / 3] * 33 + [0.0] * 34
    assert result.precision[0, :, 0] == pytest.approx(expected)
    assert result.ap(threshold=0) == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert result.recall[:, 0] == pytest.approx([2 / 3] * 10)


def test_of_equal_scores_the_first_hundred_of_a_class_count_as_in_coco():
    boxes = [[x, y, x + 8, y + 8] for x in range(0, 600, 40) for y in range(0, 400, 40)]
    record, prediction = a_record(boxes=boxes), a_prediction(boxes=boxes)
    metrics = score([record], [prediction], ["cat"])
    assert metrics["AR100"] == pytest.approx(100 / 150)
    assert metrics["AR100"] == pytest.approx(pycocotools_stats([record], [prediction], ["cat"])[0]["AR100"])
    assert metrics["matching"]["tp"] == 150


# Whole numbers on a small grid often give equal boxes, equal IoUs, equal scores and areas of exactly 32² and 96².
SIDES = st.sampled_from([4, 8, 16, 32, 48, 96, 128])
BOXES = st.tuples(st.integers(0, 4), st.integers(0, 4), SIDES, SIDES, st.integers(0, 2))
PREDICTIONS = st.tuples(BOXES, st.sampled_from([0.1, 0.5, 0.9]))


def on_grid(x, y, width, height, label):
    return [8 * x, 8 * y, 8 * x + width, 8 * y + height], f"class {label}"


@given(st.lists(st.tuples(st.lists(st.tuples(BOXES, st.booleans())), st.lists(PREDICTIONS)), min_size=1, max_size=4))
def test_every_point_of_every_curve_equals_pycocotools(images):
    records, predictions, classes = [], [], [f"class {i}" for i in range(4)]
    for number, (gt, predicted) in enumerate(images):
        boxes, labels = zip(*(on_grid(*box) for box, _ in gt), strict=True) if gt else ((), ())
        records.append(a_record(str(number), boxes, labels, [ignored for _, ignored in gt]))
        boxes, labels = zip(*(on_grid(*box) for box, _ in predicted), strict=True) if predicted else ((), ())
        predictions.append(a_prediction(str(number), boxes, labels, [score for _, score in predicted]))
    _, expected = pycocotools_stats(records, predictions, classes)
    boxes = CocoBoxes(records, predictions, classes)
    for i, area in enumerate(AREAS):
        found = boxes.match(boxes.scores, area).accumulate().precision
        np.testing.assert_allclose(found, expected[..., i, 2], rtol=0, atol=1e-9, err_msg=area)


def test_of_ground_truth_with_equal_iou_the_last_is_matched_as_in_coco():
    left, right = [0, 0, 100, 100], [20, 0, 120, 100]
    # The first prediction has IoU 0.82 with both boxes; the second can match only the right one.
    prediction = a_prediction(boxes=[[10, 0, 110, 100], [40, 0, 140, 100]], scores=[0.9, 0.8])
    values = []
    for gt_boxes in ([left, right], [right, left]):
        record = a_record(boxes=gt_boxes)
        values.append(score([record], [prediction], ["cat"])["AP50"])
        assert values[-1] == pytest.approx(pycocotools_stats([record], [prediction], ["cat"])[0]["AP50"], abs=1e-9)
    assert values[0] < values[1] == 1


def test_of_more_than_a_hundred_predictions_those_with_the_highest_scores_count():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (400, 2))], axis=1)
    record = a_record(boxes=boxes[:60].tolist(), ignore=(rng.random(60) < 0.1).tolist())
    prediction = a_prediction(
        boxes=(boxes[rng.integers(0, 80, 300)]).tolist(), scores=rng.random(300).round(2).tolist()
    )
    found = CocoBoxes([record], [prediction], ["cat"])
    expected = pycocotools_stats([record], [prediction], ["cat"])[1][..., 0, 2]
    np.testing.assert_allclose(found.match(found.scores).accumulate().precision, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_constant_score_ap_is_that_of_twenty_random_orders(ties):
    records, predictions, classes = random_data(8, images=12, ties=ties)
    found = constant_score_ap(CocoBoxes(records, predictions, classes), seed=3)
    places = sorted(
        (i, classes.index(label), x0, y0, x1 - x0, y1 - y0, j)
        for i, prediction in enumerate(predictions)
        for j, (label, (x0, y0, x1, y1)) in enumerate(
            zip(prediction["objects"]["category"], prediction["objects"]["bbox"], strict=True)
        )
    )
    generator, values = np.random.default_rng(3), []
    for _ in range(20):
        for (i, *_, j), rank in zip(places, generator.permutation(len(places)).tolist(), strict=True):
            predictions[i]["objects"]["score"][j] = float(rank)
        values.append(pycocotools_stats(records, predictions, classes)[0]["AP"])
    assert found == {
        "mean": pytest.approx(np.mean(values), abs=1e-9),
        "spread": pytest.approx(np.std(values), abs=1e-9),
    }


def test_a_bootstrap_draw_has_the_scores_of_a_split_with_the_drawn_images():
    records, predictions, classes = random_data(9, images=15)
    boxes = CocoBoxes(records, predictions, classes)
    values = bootstrap(boxes.match(boxes.scores), match_images(records, predictions), seed=4, count=6)
    for number, weights in enumerate(draws(len(records), 6, 4)):
        chosen = np.repeat(np.arange(len(records)), weights)
        drawn = [[source[i] | {"id": str(n)} for n, i in enumerate(chosen)] for source in (records, predictions)]
        expected, _ = pycocotools_stats(*drawn, classes)
        matching = score(*drawn, classes)["matching"]
        expected |= {key: matching[key] for key in ("f1", "mean_iou_gt", "fp", "fn")}
        for key in values:
            assert values[key][number] == pytest.approx(expected[key], abs=1e-9), key


def test_draws_have_the_same_values_together_as_one_by_one():
    """The sums of several draws share one integer. Every other draw has the largest sums that fit."""
    boxes = [[x, 0, x + 8, 8] for x in range(0, 230, 10)]
    records = [a_record(str(i), boxes=boxes[:-1]) for i in range(3)]
    predictions = [a_prediction(str(i), boxes=boxes[::-1]) for i in range(3)]  # a false positive first, then hits
    coco_boxes = CocoBoxes(records, predictions, ["cat"])
    drawn = np.array([[7, 7, 7], [1, 0, 2]] * 20)
    together = coco_boxes.ranked.draws_at_once(drawn)
    assert together > 2
    expected = [coco_boxes.ranked.average_precisions(weights[None]) for weights in drawn[:together]]
    found = coco_boxes.ranked.average_precisions(drawn[:together])
    np.testing.assert_array_equal(found, np.concatenate(expected))
