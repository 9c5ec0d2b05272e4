"""Noise objects: wrong boxes at the end of a training answer, and their removal from responses."""

import random

import pytest

from boxtune.answers.codecs import CODECS
from boxtune.answers.noise import require_free_label, true_objects, with_longest_noise, with_noise, without_noise
from boxtune.common.errors import UserError
from boxtune.data.boxes import box_area
from tests.helpers.records import make_record

RECORD = make_record("a", "a.png", 200, 100, [([10, 10, 60, 50], "cat"), ([100, 20, 180, 90], "dog")], classes=["cat"])
RECORD["objects"]["note"] = ["x", "y"]


def noise_of(record: dict) -> list[list[float]]:
    objects = record["objects"]
    assert objects["bbox"][:2] == RECORD["objects"]["bbox"] and objects["category"][:2] == ["cat", "dog"]
    count = len(objects["bbox"]) - 2
    assert objects["category"][2:] == ["noise"] * count and objects["ignore"][2:] == [False] * count
    assert objects["note"] == ["x", "y", *[None] * count]
    return objects["bbox"][2:]


def drawn(per_object: float, count: int = 300) -> list[list[list[float]]]:
    return [noise_of(with_noise(RECORD, per_object, random.Random(seed))) for seed in range(count)]


def test_the_number_of_noise_objects_is_proportional_on_average():
    counts = [len(boxes) for boxes in drawn(0.7)]
    assert {*counts} == {1, 2} and sum(counts) / len(counts) == pytest.approx(1.4, abs=0.1)
    assert {len(boxes) for boxes in drawn(1.0, 50)} == {2}
    empty = make_record("b", "b.png", 200, 100, [])
    assert with_noise(empty, 3.0, random.Random(0))["objects"]["bbox"] == []


def test_a_third_of_the_noise_are_copies_and_the_rest_are_other_boxes_in_the_image():
    boxes = [box for image in drawn(1.0) for box in image]
    copies = [box for box in boxes if box in RECORD["objects"]["bbox"]]
    assert len(copies) / len(boxes) == pytest.approx(1 / 3, abs=0.06)
    assert all(0 <= x0 < x1 <= 200 and 0 <= y0 < y1 <= 100 for x0, y0, x1, y1 in boxes)
    assert max(box_area(boxes)) > 10_000, "a random box may be larger than every real one"


def test_shifted_boxes_stay_near_a_real_box():
    """Scaled by 0.5 to 1.5 and shifted by up to half a side: no edge is more than 1.25 sides from the middle."""
    record = make_record("a", "a.png", 1000, 1000, [([400, 450, 500, 550], "cat")])
    near = []
    for seed in range(600):
        box = with_noise(record, 1.0, random.Random(seed))["objects"]["bbox"][1]
        if box != [400, 450, 500, 550] and all(
            abs(edge - middle) <= 125 for edge, middle in zip(box, (450, 500) * 2, strict=True)
        ):
            near.append(box)
    assert 150 < len(near) < 260, "a third of the noise"
    widths, middles = sorted(box[2] - box[0] for box in near), sorted((box[1] + box[3]) / 2 for box in near)
    # But for a few random boxes that lie there.
    assert 49.9 < widths[3] < 60 and 140 < widths[-4] < 150.1
    assert 449.9 < middles[3] < 460 and 540 < middles[-4] < 550.1


def test_the_longest_noise_is_what_can_be_appended_at_most():
    assert noise_of(with_longest_noise(RECORD, 0.6)) == [[199.8, 99.9, 200.0, 100.0]] * 2
    assert len(noise_of(with_longest_noise(RECORD, 1.0))) == 2
    assert max(len(boxes) for boxes in drawn(0.6)) == 2


def test_ignored_objects_are_no_reason_for_noise():
    record = make_record("a", "a.png", 200, 100, [([10, 10, 60, 50], "cat"), ([100, 20, 180, 90], "dog")])
    record["objects"]["ignore"] = [True, False]
    assert with_noise(record, 1.0, random.Random(0))["objects"]["category"] == ["cat", "dog", "noise"]


@pytest.mark.parametrize("codec", ["qwen3_vl", "qwen3_vl_click"])
def test_objects_labeled_as_noise_are_dropped_and_counted(codec):
    text = (
        CODECS[codec]
        .encode([[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 9, 9]], ["noise", "cat", "noise"], (100, 100), (100, 100))
        .text
    )
    answer = CODECS[codec].decode(text, (100, 100), (100, 100))
    kept = without_noise(answer, "noise")
    assert kept.labels == ["cat"] and kept.problems == ["noise", "noise"]
    assert kept.boxes_xyxy == answer.boxes_xyxy[1:2] and kept.points_xy == answer.points_xy[1:2]
    assert kept.places == answer.places[1:2] and len(kept.places) == 1


def test_a_record_without_its_noise_is_the_record():
    assert true_objects(with_noise(RECORD, 2.0, random.Random(0)), "noise") == RECORD


def test_a_class_called_noise_is_refused():
    require_free_label(["cat", "noisy"])
    with pytest.raises(UserError, match="the dataset has a class ' Noise '"):
        require_free_label(["cat", " Noise "])
