"""Average precision against pycocotools, to nine digits, and what is built on it: equal scores and draws of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxtune.metrics.average_precision import AREAS, CocoBoxes, constant_score_ap, curves
from boxtune.metrics.bootstrap import bootstrap, draws
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


def test_more_than_a_hundred_boxes_of_a_class_are_cut_as_in_coco():
    boxes = [[x, y, x + 8, y + 8] for x in range(0, 600, 40) for y in range(0, 400, 40)]
    record, prediction = a_record(boxes=boxes), a_prediction(boxes=boxes)
    metrics = score([record], [prediction], ["cat"])
    assert metrics["AR100"] == pytest.approx(100 / 150)
    assert metrics["AR100"] == pytest.approx(pycocotools_stats([record], [prediction], ["cat"])[0]["AR100"])
    assert metrics["matching"]["tp"] == 150


# Whole numbers on a small grid: equal boxes, equal IoUs, equal scores and areas of exactly 32² and 96² come up often.
SIDES = st.sampled_from([4, 8, 16, 32, 48, 96, 128])
BOXES = st.tuples(st.integers(0, 4), st.integers(0, 4), SIDES, SIDES, st.integers(0, 2))
ANSWERS = st.tuples(BOXES, st.sampled_from([0.1, 0.5, 0.9]))


def on_grid(x, y, width, height, label):
    return [8 * x, 8 * y, 8 * x + width, 8 * y + height], f"class {label}"


@given(st.lists(st.tuples(st.lists(st.tuples(BOXES, st.booleans())), st.lists(ANSWERS)), min_size=1, max_size=4))
def test_every_point_of_every_curve_equals_pycocotools(images):
    records, predictions, classes = [], [], [f"class {i}" for i in range(4)]
    for number, (truth, answers) in enumerate(images):
        boxes, labels = zip(*(on_grid(*box) for box, _ in truth), strict=True) if truth else ((), ())
        records.append(a_record(str(number), boxes, labels, [ignored for _, ignored in truth]))
        boxes, labels = zip(*(on_grid(*box) for box, _ in answers), strict=True) if answers else ((), ())
        predictions.append(a_prediction(str(number), boxes, labels, [score for _, score in answers]))
    _, expected = pycocotools_stats(records, predictions, classes)
    boxes = CocoBoxes(records, predictions, classes)
    for i, area in enumerate(AREAS):
        found = boxes.match(boxes.scores, area).coco().precision
        np.testing.assert_allclose(found, expected[..., i, 2], rtol=0, atol=1e-9, err_msg=area)


def test_of_truth_that_overlaps_alike_the_later_is_taken_as_in_coco():
    left, right = [0, 0, 100, 100], [20, 0, 120, 100]
    # The first lies between them, IoU 0.82 with both; the second can have only the right one.
    prediction = a_prediction(boxes=[[10, 0, 110, 100], [40, 0, 140, 100]], scores=[0.9, 0.8])
    values = []
    for truth in ([left, right], [right, left]):
        record = a_record(boxes=truth)
        values.append(score([record], [prediction], ["cat"])["AP50"])
        assert values[-1] == pytest.approx(pycocotools_stats([record], [prediction], ["cat"])[0]["AP50"], abs=1e-9)
    assert values[0] < values[1] == 1


def test_of_more_than_a_hundred_boxes_the_best_scored_count():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (400, 2))], axis=1)
    record = a_record(boxes=boxes[:60].tolist(), ignore=(rng.random(60) < 0.1).tolist())
    prediction = a_prediction(
        boxes=(boxes[rng.integers(0, 80, 300)]).tolist(), scores=rng.random(300).round(2).tolist()
    )
    found = CocoBoxes([record], [prediction], ["cat"])
    expected = pycocotools_stats([record], [prediction], ["cat"])[1][..., 0, 2]
    np.testing.assert_allclose(found.match(found.scores).coco().precision, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_equal_scores_are_twenty_orders_spelt_out_by_scores_that_differ(ties):
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


def test_a_draw_of_images_scores_as_a_split_of_these_images_would():
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
