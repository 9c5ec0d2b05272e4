"""The loss of the detection head: assignment against brute force, terms against float64, and what does not count."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from boxtune.batching.head_targets import UNITS
from boxtune.models.detection_head import Found, Layer, token_centers
from boxtune.training.detection_loss import DetectionLoss, _costs, assign, assign_tokens, focal, layer_terms


def random_layer(queries: int, classes: int, rows: int = 1, seed: int = 0) -> Layer:
    draw = torch.Generator().manual_seed(seed)
    boxes = torch.rand(rows, queries, 4, generator=draw) * 0.5 + 0.1
    logits = torch.randn(rows, queries, classes, generator=draw)
    return Layer(
        boxes.requires_grad_(), logits.requires_grad_(), torch.ones(rows, queries, dtype=torch.bool), has_classes=True
    )


def make_targets(boxes_of_rows: list[list], labels: list[int], classes: int) -> dict[str, torch.Tensor]:
    boxes = [box for boxes in boxes_of_rows for box in boxes]
    return {
        "asks_for_boxes": torch.ones(len(boxes_of_rows), dtype=torch.bool),
        "asked": torch.ones(len(boxes_of_rows), classes, dtype=torch.bool),
        "boxes": (torch.tensor(boxes).reshape(-1, 4) * UNITS).round().long(),
        "label": torch.tensor(labels, dtype=torch.long),
        "row": torch.tensor([row for row, boxes in enumerate(boxes_of_rows) for _ in boxes], dtype=torch.long),
        **ignored_boxes([], [], []),
    }


def ignored_boxes(boxes: list, labels: list[int], rows: list[int]) -> dict[str, torch.Tensor]:
    return {
        "ignored": (torch.tensor(boxes).reshape(-1, 4) * UNITS).round().long(),
        "ignored_label": torch.tensor(labels, dtype=torch.long),
        "ignored_row": torch.tensor(rows, dtype=torch.long),
    }


def whole_head(layer: Layer) -> Found:
    """A head with proposals of a 2 × 3 grid and this layer, twice."""
    rows, nothing = len(layer.logits), torch.zeros(0)
    proposals = random_layer(6, classes=1, rows=rows, seed=9)
    proposals = Layer(proposals.boxes_cxcywh, proposals.logits, proposals.exists, has_classes=False)
    return Found(proposals, token_centers([(2, 3)] * rows), [layer, layer], nothing, nothing, nothing)


def some_boxes(count: int, seed: int) -> list:
    return (torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.1).tolist()


@given(seed=st.integers(0, 1000), boxes=st.integers(1, 4), queries=st.integers(1, 5))
def test_the_assignment_costs_as_little_as_the_best_of_all(seed, boxes, queries):
    layer = random_layer(queries, classes=2, seed=seed)
    labels = [(seed + i) % 2 for i in range(boxes)]
    targets = make_targets([some_boxes(boxes, seed + 1)], labels, classes=2)
    row, query, box = assign(layer, targets)
    cost = _costs(layer, 0, targets["boxes"].float() / UNITS, targets["label"]).double()
    matched = min(boxes, queries)
    assert len(row) == len(set(query.tolist())) == len(set(box.tolist())) == matched
    long, short, table = (queries, boxes, cost.T) if queries >= boxes else (boxes, queries, cost)
    best = min(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(long), short))
    assert cost[query, box].sum().item() == pytest.approx(best.item(), abs=1e-5)


def test_the_terms_equal_a_float64_reference():
    """float32 sums of a few numbers near 1 differ by about 1e-6."""
    layer = random_layer(6, classes=2, rows=2)
    targets = make_targets([some_boxes(2, 5), some_boxes(1, 6)], [0, 1, 1], classes=2)
    row, query, box = assign(layer, targets)
    found, true = layer.boxes_cxcywh[row, query].double(), targets["boxes"][box].double() / UNITS
    goal = torch.zeros_like(layer.logits).double()
    goal[row, query, targets["label"][box]] = 1
    corners = [box_convert(boxes, "cxcywh", "xyxy") for boxes in (found, true)]
    expected = {
        "bbox": (found - true).abs().sum(),
        "giou": generalized_box_iou_loss(*corners, reduction="sum", eps=0),
        "objectness": sigmoid_focal_loss(layer.logits.double(), goal, reduction="sum"),
    }
    terms = layer_terms(layer, assign(layer, targets), targets)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5), name


def test_tokens_in_the_middle_of_a_box_and_the_nearest_one_propose_it():
    centers = token_centers([(4, 4), (2, 2)])  # at 1/8, 3/8, 5/8, 7/8; at 1/4 and 3/4
    exists = torch.tensor([[True] * 16, [True] * 4 + [False] * 12])
    large, small, tiny = [0.5, 0.5, 1.0, 1.0], [0.375, 0.375, 0.6, 0.6], [0.9, 0.1, 0.01, 0.01]
    row, token, box = assign_tokens(centers, exists, make_targets([[large, small, tiny], [tiny]], [0] * 4, classes=1))
    assigned = {(r, t): b for r, t, b in zip(row.tolist(), token.tolist(), box.tolist(), strict=True)}
    # Of the large box, the four inner tokens: of these, the one in the small box belongs to that.
    assert assigned == {(0, 5): 1, (0, 6): 0, (0, 9): 0, (0, 10): 0, (0, 3): 2, (1, 1): 3}


def test_the_total_sums_proposals_and_layers_at_the_scale_of_the_boxes():
    targets = make_targets([some_boxes(2, 5), some_boxes(1, 6)], [0, 1, 1], classes=2)
    found = whole_head(random_layer(6, classes=2, rows=2))
    proposed = assign_tokens(found.centers, found.proposals.exists, targets)
    total = DetectionLoss().terms(found, targets)
    parts = [layer_terms(layer, assign(layer, targets), targets) for layer in found.layers]
    proposals = layer_terms(found.proposals, proposed, targets)
    for name, value in total.items():
        expected = sum(part[name] for part in parts) + proposals[name] * 3 / len(proposed[0])
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_every_term_has_a_gradient():
    targets = make_targets([some_boxes(2, 1)], [0, 1], classes=2)
    for name in ("bbox", "giou", "objectness"):
        layer = random_layer(5, classes=2)
        DetectionLoss().terms(whole_head(layer), targets)[name].backward()
        moved = layer.logits.grad if name == "objectness" else layer.boxes_cxcywh.grad
        assert moved.abs().sum() > 0, name


@pytest.mark.parametrize(
    "boxes", [[], [[0.5, 0.5, 1e-6, 1e-6]], [[0.5, 0.5, 1, 1]] * 9], ids=["none", "a point", "more than queries"]
)
def test_unusual_targets_give_finite_losses_and_gradients(boxes):
    layer = random_layer(4, classes=1)
    terms = DetectionLoss().terms(whole_head(layer), make_targets([boxes], [0] * len(boxes), classes=1))
    sum(DetectionLoss().weigh(terms).values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert layer.logits.grad.isfinite().all() and layer.logits.grad.abs().sum() > 0
    assert layer.boxes_cxcywh.grad is None or layer.boxes_cxcywh.grad.isfinite().all()


def test_not_finite_predictions_do_not_break_the_assignment():
    layer = random_layer(3, classes=1)
    with torch.no_grad():
        layer.boxes_cxcywh[0, 1] = float("nan")
    _, query, _ = assign(layer, make_targets([some_boxes(2, 0)], [0, 0], classes=1))
    assert sorted(query.tolist()) == [0, 2]


def test_what_was_not_asked_or_does_not_exist_does_not_count():
    targets = make_targets([some_boxes(1, 0), []], [0], classes=2)
    whole = random_layer(4, classes=2, rows=2)
    background = focal(whole.logits, torch.zeros_like(whole.logits))

    def objectness(layer: Layer, targets: dict) -> float:
        return layer_terms(layer, assign(layer, targets), targets)["objectness"].item()

    everything = objectness(whole, targets)
    one_class = targets | {"asked": torch.tensor([[True, True], [True, False]])}
    answered_by_text = targets | {"asks_for_boxes": torch.tensor([True, False])}
    fewer = Layer(whole.boxes_cxcywh, whole.logits, torch.tensor([[True] * 4, [True] * 3 + [False]]), has_classes=True)
    left_out = {
        everything - objectness(whole, one_class): background[1, :, 1],
        everything - objectness(whole, answered_by_text): background[1],
        everything - objectness(fewer, targets): background[1, 3],
    }
    for difference, losses in left_out.items():
        assert difference == pytest.approx(losses.sum().item(), abs=1e-6)


def test_a_query_at_least_half_in_an_ignored_box_of_its_class_is_not_background():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [0.61, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    layer = Layer(boxes, torch.randn(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), has_classes=True)
    targets = make_targets([[]], [], classes=2)
    background = focal(layer.logits, torch.zeros_like(layer.logits))

    def objectness(targets: dict) -> float:
        return layer_terms(layer, assign(layer, targets), targets)["objectness"].item()

    ignored = targets | ignored_boxes([[0.5, 0.5, 0.2, 0.2]], [1], [0])
    expected = background.sum() - background[0, :2, 1].sum()  # the first covers it, half of the second is inside
    assert objectness(ignored) == pytest.approx(expected.item(), abs=1e-6)


def test_a_matched_query_in_an_ignored_box_still_learns_its_object():
    boxes = [[0.5, 0.5, 0.2, 0.2]]
    layer = Layer(torch.tensor([boxes]), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), has_classes=True)
    targets = make_targets([boxes], [0], classes=1)
    plain = layer_terms(layer, assign(layer, targets), targets)
    crowded = targets | ignored_boxes(boxes, [0], [0])
    assert layer_terms(layer, assign(layer, crowded), crowded) == plain
