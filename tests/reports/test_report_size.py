"""report.html stays small: counts are aggregated without loss, and what is drawn has a budget."""

import base64

import numpy as np
import pytest
from PIL import Image

from boxtune.metrics.matching import match_images
from boxtune.metrics.minimum_score import outcomes
from boxtune.metrics.scoring import share, total_rates
from boxtune.reports import report_data
from boxtune.reports.report_data import MAX_DRAWN, MISSED, counts_data
from boxtune.reports.report_images import choose_images, load_images
from tests.helpers.report_page import a_record, answer, cards_of, data_of, kept, write


def counts_at(data, minimum):
    """(true positives, false positives) as report_counts.js computes them."""
    values = np.frombuffer(base64.b64decode(data["value"]), "<f8")
    counts = np.ones(len(values)) if data["count"] is None else np.frombuffer(base64.b64decode(data["count"]), "<i4")
    totals, first = {"hit": 0, "excused": 0, "missed": 0, "false": 0}, 0
    for _, kind, size in data["groups"]:
        rows = slice(first, first + size)
        kind = "missed" if kind in MISSED else kind if kind in totals else "false"
        totals[kind] += int(counts[rows][values[rows] >= minimum].sum())
        first += size
    return totals["hit"], totals["false"]


@pytest.mark.parametrize(("rows", "steps"), [(10_000, 0), (60, 20), (400, 200)])
def test_counts_are_exact_at_every_minimum_score_that_can_be_chosen(crowd, monkeypatch, rows, steps):
    records, predictions = crowd
    draw = np.random.default_rng(0)
    for prediction in predictions:
        prediction["objects"]["score"] = draw.random(len(prediction["objects"]["score"])).tolist()
    classes = ["cat", "dog"]
    split, matches = share(records, predictions, classes).split, match_images(records, predictions)
    monkeypatch.setattr(report_data, "MAX_ROWS", rows)
    monkeypatch.setattr(report_data, "STEPS", (200, 20))
    data = counts_data(outcomes(records, predictions, matches, classes, 0.5, split))
    if steps == 200:
        assert data["steps"] in (0, 200)
    else:
        assert data["steps"] == steps
    assert all((label == -1) == (kind in MISSED) for label, kind, _ in data["groups"])
    for k in range(21):
        rates = total_rates(match_images(records, list(kept(predictions, k / 20))))
        assert counts_at(data, k / 20) == (rates["tp"], rates["fp"])


def test_an_image_with_thousands_of_boxes_draws_its_errors_first(folder, browse):
    """1,800 objects, half of them correct. The page draws MAX_DRAWN boxes, all of them errors, and counts all."""
    gt_boxes = [[k, 0, k + 0.9, 100] for k in range(900)]
    record = a_record("good", gt_boxes)
    predicted = [[k, 0, k + 0.9, 100] for k in range(450)] + [[k, 200, k + 0.9, 300] for k in range(450)]
    scores = np.linspace(0.1, 0.9, 900).tolist()
    objects = {"bbox": predicted, "category": ["cat"] * 900, "score": scores}
    html, metrics = write(folder, [record], [answer(record, []) | {"objects": objects}])
    (image,) = data_of(html)["images"]
    assert (image["gt"], image["predictions"]) == (900, 900)
    assert image["gt_drawn"] + image["predictions_drawn"] == MAX_DRAWN
    assert (metrics["matching"]["tp"], metrics["matching"]["fp"]) == (450, 450)
    (card,) = cards_of(browse())
    assert card["counts"][:3] == ["450 TP", "450 FP", "450 FN"]
    assert f"{MAX_DRAWN} of 1800 boxes drawn, errors first" in card["counts"]
    assert sum("false positive" in tip for tip in card["boxes"]) == MAX_DRAWN // 2
    assert sum("missed" in tip for tip in card["boxes"]) == MAX_DRAWN // 2
    (card,) = cards_of(browse("#score=0.5"))
    assert card["counts"][:3] == ["0 TP", "450 FP", "900 FN"]


def test_images_with_too_many_boxes_are_left_out_and_named(folder, three, monkeypatch):
    records, predictions = three
    monkeypatch.setattr(
        "boxtune.reports.report.OBJECT_BYTES", 400
    )  # half of it fits "good" but not the five objects of "bad"
    html, _ = write(folder, records, predictions)
    data = data_of(html)
    assert {image["id"] for image in data["images"]} <= {"good", "empty"}
    assert "1 images have too many boxes for this page and are left out." in html
    assert counts_at(data["counts"], 0) == (2, 2)


def test_long_responses_are_cut_to_their_budget(folder, three, monkeypatch):
    records, predictions = three
    monkeypatch.setattr(report_data, "TEXT_BYTES", 3_000)
    predictions[0]["text"] = "x" * 100_000
    html, _ = write(folder, records, predictions)
    first, *others = data_of(html)["images"]
    assert len(first["text"]) < 3_100
    assert first["text"].endswith("… (100000 characters; predictions.jsonl has all of them)")
    assert [image["text"] for image in others] == [prediction["text"] for prediction in predictions[1:]]


def test_the_images_of_a_page_share_its_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 300, 400, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(len(noise))]
    for path, pixels in zip(paths, noise, strict=True):
        Image.fromarray(pixels).save(path)
    for total_bytes in range(100_000, 300_000, 25_000):
        used = sum(len(image.data_uri) for image in load_images(paths, total_bytes))
        assert 0.4 * total_bytes < used < total_bytes + 100 * len(paths)


def test_no_image_is_too_large_if_all_are_shown(three):
    records, predictions = three
    shown = choose_images(match_images(records, predictions), np.array([9, 1, 1]), limit=3, budget=11, seed=0)
    assert (shown.positions, shown.too_large) == ([0, 1, 2], 0)
