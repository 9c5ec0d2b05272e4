"""The references: a plain convolutional detector, and the embedded model's vision tower alone, on a prepared dataset."""

import json
import random

import pytest
import torch

from benchmarks import plain_detector, tower
from benchmarks.dense_detection import (
    assign_cells,
    batches,
    cell_centers,
    flipped,
    input_boxes,
    input_image,
    loss_of,
    to_boxes,
)
from boxtune.data.dataset import read_records


def test_a_cell_is_assigned_to_the_smallest_object_around_it():
    """A 2-pixel object still gets the cell at its center, and the edges of an object get none."""
    assigned = assign_cells(torch.tensor([[0.0, 0, 160, 160], [60, 60, 100, 100], [200, 10, 202, 12]]), 24, 32, cell=8)
    assert assigned[10, 10] == 1 and assigned[6, 6] == 0 and assigned[0, 0] == -1 and assigned[5, 15] == -1
    assert (assigned == 2).nonzero().tolist() == [[1, 25]]  # the cell of its center, (201, 11)


def test_distances_to_edges_recover_the_box():
    box = torch.tensor([13.0, 20, 75, 41])
    centers = cell_centers(8, 12, cell=8)
    edges = torch.cat([centers - box[:2], box[2:] - centers], -1)
    torch.testing.assert_close(to_boxes(edges, cell=8), box.expand(8, 12, 4))


def test_flipping_twice_is_the_identity(squares):
    record = next(r for r in read_records(squares, "train") if r["objects"]["bbox"])
    image = input_image(record, squares)
    boxes_xyxy = input_boxes(record, image)
    once = flipped(image, boxes_xyxy)
    twice, again = flipped(*once)
    assert twice.tobytes() == image.tobytes() and once[0].tobytes() != image.tobytes()
    torch.testing.assert_close(again, boxes_xyxy)


def test_the_loss_falls_on_training_images(squares):
    torch.manual_seed(0)
    records = read_records(squares, "train")[:6]
    images = [input_image(record, squares).resize((224, 224)) for record in records]
    boxes = [input_boxes(record, image) for record, image in zip(records, images, strict=True)]
    labels = [[int(name == "red square") for name in record["objects"]["category"]] for record in records]
    model = plain_detector.Detector(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = loss_of(model, images, boxes, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_prints_its_scores(squares, capsys):
    plain_detector.main([str(squares), "--images-shown", "1"])
    result = json.loads(capsys.readouterr().out)
    assert result["images_shown"] == 1 and 0 <= result["AP"] <= result["AP50"] <= 1 and 0 <= result["mean_iou_gt"] <= 1


@pytest.mark.parametrize("module", [plain_detector, tower])
def test_a_run_without_images_is_rejected(module, squares, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main([str(squares), "--images-shown", "0"])
    assert stop.value.code == 2 and "--images-shown 0" in capsys.readouterr().err


def test_a_batch_has_images_of_one_size_and_an_epoch_has_every_image_once():
    sizes = [(224, 224) if i % 3 else (192, 256) for i in range(50)]
    epoch = batches(sizes, random.Random(0))
    assert sorted(i for batch in epoch for i in batch) == list(range(50))
    assert all(len({sizes[i] for i in batch}) == 1 for batch in epoch)
    assert epoch != batches(sizes, random.Random(1))


@pytest.mark.parametrize(
    "options", [["--random", "--vision-layers", "1"], ["--float32"]], ids=["random", "embedded model"]
)
def test_the_tower_alone_is_scored_on_validation(options, squares, monkeypatch, capsys):
    monkeypatch.setattr(tower, "CHOOSING", 6)
    tower.main([str(squares), "--images-shown", "2", *options])
    result = json.loads(capsys.readouterr().out)
    assert 0 <= result["f1"] <= 1 and result["images_shown"] == 2


def test_the_tower_needs_images_to_choose_the_threshold(squares, capsys):
    with pytest.raises(SystemExit) as stop:
        tower.main([str(squares)])
    assert stop.value.code == 2 and "200 images in train" in capsys.readouterr().err
