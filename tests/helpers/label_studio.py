"""Predictions as Label Studio reads them."""

import pytest


def boxes_of(prediction: dict) -> list[tuple]:
    """(label, [x0, y0, x1, y1] in pixels, score) of each region."""
    found = []
    for region in prediction["result"]:
        value, width, height = region["value"], region["original_width"], region["original_height"]
        x, y = value["x"] * width / 100, value["y"] * height / 100
        box = [x, y, x + value["width"] * width / 100, y + value["height"] * height / 100]
        found.append((*value["rectanglelabels"], box, region["score"]))
    return found


def assert_offline(prediction: dict, offline, labels=None) -> None:
    """`labels`: names that regions have in place of the checkpoint's; those that it lacks are left out."""
    expected = [
        (labels.get(label) if labels else label, box, score)
        for label, box, score in zip(offline.labels, offline.boxes_xyxy.tolist(), offline.scores.tolist(), strict=True)
    ]
    expected = [row for row in expected if row[0]]
    assert [row[0] for row in boxes_of(prediction)] == [row[0] for row in expected]
    for (_, box, score), (_, expected_box, expected_score) in zip(boxes_of(prediction), expected, strict=True):
        assert box == pytest.approx(expected_box, abs=1e-9) and score == pytest.approx(expected_score, abs=1e-3)
