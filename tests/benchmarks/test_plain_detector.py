"""The reference: a plain convolutional detector on a prepared dataset."""

import json

import pytest
import torch

from benchmarks import plain_detector
from benchmarks.plain_detector import assign_cells, cell_centers, to_boxes


def test_a_cell_is_assigned_to_the_smallest_object_around_it():
    """A 2-pixel object still gets the cell at its center, and the edges of an object get none."""
    assigned = assign_cells(torch.tensor([[0.0, 0, 160, 160], [60, 60, 100, 100], [200, 10, 202, 12]]), 24, 32)
    assert assigned[10, 10] == 1 and assigned[6, 6] == 0 and assigned[0, 0] == -1 and assigned[5, 15] == -1
    assert (assigned == 2).nonzero().tolist() == [[1, 25]]  # the cell of its center, (201, 11)


def test_distances_to_edges_recover_the_box():
    box = torch.tensor([13.0, 20, 75, 41])
    centers = cell_centers(8, 12)
    edges = torch.cat([centers - box[:2], box[2:] - centers], -1)
    torch.testing.assert_close(to_boxes(edges, 8, 12), box.expand(8, 12, 4))


def test_flipping_twice_is_the_identity(squares):
    record = next(r for r in plain_detector.read_records(squares, "train") if r["objects"]["bbox"])
    image = plain_detector.input_image(record, squares)
    boxes_xyxy = plain_detector.input_boxes(record, image)
    once = plain_detector.flipped(image, boxes_xyxy)
    twice, again = plain_detector.flipped(*once)
    assert twice.tobytes() == image.tobytes() and once[0].tobytes() != image.tobytes()
    torch.testing.assert_close(again, boxes_xyxy)


def test_the_loss_falls_on_training_images(squares):
    torch.manual_seed(0)
    records = plain_detector.read_records(squares, "train")[:6]
    images = [plain_detector.input_image(record, squares) for record in records]
    boxes = [plain_detector.input_boxes(record, image) for record, image in zip(records, images, strict=True)]
    labels = [[int(name == "red square") for name in record["objects"]["category"]] for record in records]
    model = plain_detector.Detector(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = plain_detector.loss_of(model, images, boxes, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_prints_its_scores(squares, capsys):
    plain_detector.main([str(squares), "--steps", "1"])
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 1 and 0 <= result["AP"] <= result["AP50"] <= 1 and 0 <= result["mean_iou_gt"] <= 1


def test_a_run_without_steps_is_rejected(squares, capsys):
    with pytest.raises(SystemExit) as stop:
        plain_detector.main([str(squares), "--steps", "0"])
    assert stop.value.code == 2 and "--steps 0" in capsys.readouterr().err
