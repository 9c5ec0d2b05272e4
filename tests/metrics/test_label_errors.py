"""Which disagreements between checkpoints and ground truth are listed as likely label errors, and in which order."""

import random

import pytest

from boxtune.data.boxes import box_iou
from boxtune.metrics.label_errors import find_label_errors
from tests.helpers.records import make_record

CLASSES = ["cat", "dog", "owl"]
SIZE = 400


def random_records(count, seed):
    """Images with one box in each of four quarters, so that no two boxes overlap."""
    rng = random.Random(seed)
    records = []
    for number in range(count):
        objects = []
        for x, y in ((0, 0), (200, 0), (0, 200), (200, 200)):
            width, height = rng.uniform(60, 120), rng.uniform(60, 120)
            x0, y0 = x + rng.uniform(20, 60), y + rng.uniform(20, 60)
            objects.append(([x0, y0, x0 + width, y0 + height], rng.choice(CLASSES)))
        records.append(make_record(f"image-{number:03}", "", SIZE, SIZE, objects, classes=CLASSES))
    return records


def predict(record, objects, problems=()):
    """A prediction of `objects`: (box, label, score)."""
    columns = {key: [entry[number] for entry in objects] for number, key in enumerate(("bbox", "category", "score"))}
    return {
        "id": record["id"], "image": "", "width": SIZE, "height": SIZE, "codec": None, "input_size": None, "text": "",
        "objects": columns, "problems": list(problems), "seconds": 0.0,
    }  # fmt: skip


def good_run(records, seed, jitter=2.0):
    """Predictions of a good checkpoint: every box is found with its class, at most `jitter` pixels off, with some score."""
    rng = random.Random(seed)
    return [
        predict(
            record,
            [
                ([value + rng.uniform(-jitter, jitter) for value in box], label, rng.uniform(0.6, 1))
                for box, label in zip(record["objects"]["bbox"], record["objects"]["category"], strict=True)
            ],
        )
        for record in records
    ]


def relabeled(record, boxes, labels):
    objects = list(zip(boxes, labels, strict=True))
    return make_record(record["id"], "", SIZE, SIZE, objects, classes=CLASSES)


def with_error(record, kind):
    """(the record with a label error of this kind, position of the wrong label or None, the box that should be labeled)."""
    boxes, labels = list(record["objects"]["bbox"]), list(record["objects"]["category"])
    true_box = boxes[1]
    if kind == "missing":
        return relabeled(record, boxes[:1] + boxes[2:], labels[:1] + labels[2:]), None, true_box
    if kind == "spurious":
        return relabeled(record, [*boxes, [180, 1, 199, 12]], [*labels, "cat"]), 4, None
    if kind == "moved":
        x0, y0, x1, y1 = true_box
        shift = (x1 - x0) / 3
        boxes[1] = [x0 + shift, y0, x1 + shift, y1]
        return relabeled(record, boxes, labels), 1, true_box
    labels[1] = "dog" if labels[1] == "cat" else "cat"
    return relabeled(record, boxes, labels), 1, true_box


@pytest.mark.parametrize("runs", [1, 3])
def test_no_candidates_where_checkpoints_agree_with_the_ground_truth(runs):
    records = random_records(20, seed=0)
    assert find_label_errors(records, [good_run(records, seed) for seed in range(runs)]) == []


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["missing", "spurious", "moved", "swapped"])
def test_a_planted_error_is_the_only_candidate(kind, seed, runs):
    records = random_records(20, seed)
    predictions = [good_run(records, 10 + number) for number in range(runs)]
    right_label = records[7]["objects"]["category"][1]
    records[7], position, true_box = with_error(records[7], kind)
    (found,) = find_label_errors(records, predictions)
    assert (found.image, found.kind, found.ground_truth, found.checkpoints) == (7, kind, position, runs)
    assert 0.7 < found.score < 1
    if kind == "spurious":
        assert (found.box_xyxy, found.category) == (None, None)
    else:
        assert box_iou([found.box_xyxy], [true_box])[0, 0] > 0.9
        assert found.category == right_label


def test_planted_errors_rank_above_errors_of_the_checkpoints():
    """Every third box is predicted badly: lost, elsewhere, of another class, or invented with a low score."""
    records = random_records(60, seed=5)
    rng = random.Random(6)
    runs = []
    for seed in range(3):
        run = good_run(records, seed)
        for number, prediction in enumerate(run):
            objects = prediction["objects"]
            if number < 4:  # the images of the planted errors
                continue
            i = rng.randrange(4)
            fault = rng.choice(["lost", "elsewhere", "class", "invented"])
            if fault == "lost":
                for column in objects.values():
                    del column[i]
            elif fault == "elsewhere":
                objects["bbox"][i] = [value + rng.choice([-25, 25]) for value in objects["bbox"][i]]
            elif fault == "class":
                objects["category"][i] = rng.choice(CLASSES)
                objects["score"][i] = rng.uniform(0.3, 0.6)
            else:
                objects["bbox"].append([175, 1, 199, 15])
                objects["category"].append("cat")
                objects["score"].append(rng.uniform(0.2, 0.5))
        runs.append(run)
    for number, kind in enumerate(("missing", "spurious", "moved", "swapped")):
        records[number], *_ = with_error(records[number], kind)
    found = find_label_errors(records, runs)
    assert len(found) > 20
    planted = {(0, "missing"), (1, "spurious"), (2, "moved"), (3, "swapped")}
    assert planted <= {(one.image, one.kind) for one in found[:6]}


def test_a_checkpoint_that_never_names_a_class_is_not_believed_about_it():
    """It calls every owl a dog: that is its error, not that of 20 labels."""
    records = random_records(20, seed=1)
    run = good_run(records, 0)
    for prediction in run:
        prediction["objects"]["category"] = [
            "dog" if label == "owl" else label for label in prediction["objects"]["category"]
        ]
    assert find_label_errors(records, [run]) == []


def test_a_box_must_be_moved_to_the_same_place_by_several_checkpoints():
    records = random_records(20, seed=2)
    runs = [good_run(records, seed) for seed in range(3)]
    x0, y0, x1, y1 = records[3]["objects"]["bbox"][0]
    for run, (dx, dy) in zip(runs, ((40, 0), (-40, 0), (0, 40)), strict=True):
        run[3]["objects"]["bbox"][0] = [x0 + dx, y0 + dy, x1 + dx, y1 + dy]
    assert [one for one in find_label_errors(records, runs) if one.kind == "moved"] == []


def test_an_incomplete_response_is_no_evidence_of_a_spurious_label():
    records = random_records(20, seed=3)
    for problems, expected in (([], ["spurious"]), (["truncated"], [])):
        run = good_run(records, 0)
        objects = [*zip(*run[4]["objects"].values(), strict=True)][:3]
        run[4] = predict(records[4], objects, problems)
        assert [one.kind for one in find_label_errors(records, [run])] == expected


def test_images_without_a_prediction_are_judged_by_the_other_checkpoints():
    records = random_records(20, seed=4)
    runs = [good_run(records, seed) for seed in range(2)]
    records[7], *_ = with_error(records[7], "missing")
    records[8], *_ = with_error(records[8], "missing")
    runs[0][7] = runs[0][8] = runs[1][8] = None
    (found,) = find_label_errors(records, runs)
    assert (found.image, found.checkpoints) == (7, 1)
    assert found.score > 0.7


def test_ignored_ground_truth_is_no_candidate_and_excuses_boxes_inside_it():
    records = random_records(20, seed=6)
    run = good_run(records, 0)
    records[2]["objects"]["ignore"][0] = records[3]["objects"]["ignore"][0] = True
    for column in run[2]["objects"].values():  # the ignored object is not found
        del column[0]
    x0, y0, x1, y1 = run[3]["objects"]["bbox"][0]
    run[3]["objects"]["bbox"][0] = [x0, y0, x0 + (x1 - x0) / 4, y1]  # a part of it
    assert find_label_errors(records, [run]) == []


def test_scores_that_are_all_equal_and_few_boxes():
    record = make_record("a", "", SIZE, SIZE, [([10, 10, 90, 90], "cat")], classes=CLASSES)
    run = [predict(record, [([10, 10, 90, 90], "cat", 1.0), ([200, 200, 300, 300], "cat", 1.0)])]
    (found,) = find_label_errors([record], [run])
    assert (found.kind, found.score) == ("missing", 0.5)
    assert find_label_errors([], []) == []
    assert find_label_errors([record], [[None]]) == []
    assert find_label_errors([record], [[predict(record, [])]]) == []  # a checkpoint that finds nothing is not believed
