"""Every loss term has a correct gradient, and none needs a tensor of size vocabulary × length."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import generalized_box_iou_loss

from boxtune.answers.codecs import CODECS
from boxtune.batching.answer_tokens import AnswerTokens, Decision, ObjectTokens
from boxtune.batching.box_targets import collate_targets
from boxtune.data.boxes import box_iou
from boxtune.training.losses import (
    BOX_LOSSES,
    BoxLosses,
    box_loss,
    decision_losses,
    expected_boxes,
    paired_giou,
    require_shapes,
)
from tests.helpers.collators import make_collator
from tests.helpers.records import FAMILIES, make_record

THOUSANDTHS = CODECS["qwen3_vl"]


def digits_only_answer(boxes: list[list[int]]) -> AnswerTokens:
    """A response that consists only of the digits of its boxes, with a decision after each box."""
    objects, digits, at = [], {}, 1
    decisions = [Decision(0, 10, 11, bool(boxes))]
    for i, box in enumerate(boxes):
        numbers = []
        for value in box:
            numbers.append(list(range(at, at + len(str(value)))))
            digits |= zip(numbers[-1], map(int, str(value)), strict=True)
            at += len(str(value))
        objects.append(ObjectTokens(numbers, [], "cat"))
        decisions.append(Decision(at, 10, 11, i + 1 < len(boxes)))
        at += 1
    return AnswerTokens([0] * at, objects, decisions, digits)


def targets_of(*answers: list[list[int]]) -> dict[str, torch.Tensor]:
    rows = [(i, 1, digits_only_answer(boxes)) for i, boxes in enumerate(answers)]
    return collate_targets(rows, [(448, 448)] * len(answers), THOUSANDTHS)


def random_logits(targets, seed=0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(targets["digit"]), 10, generator=generator, dtype=dtype).requires_grad_()


BOX = [7, 52, 340, 1000]  # numbers of one, two, three and four digits


def test_targets_contain_boxes_and_the_positions_that_predict_their_digits():
    targets = targets_of([], [BOX, [10, 20, 30, 40]])
    assert targets["boxes_xyxy"].tolist() == [BOX, [10, 20, 30, 40]]
    assert targets["sides"].tolist() == [[1000] * 4] * 2
    assert targets["digit"].tolist() == [7, 5, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0]
    # The response starts at position 1 and its first digit is at position 2, so position 1 predicts the digit.
    assert targets["digit_at"][:3].tolist() == [[1, 1], [1, 2], [1, 3]]
    assert targets["goes_on"].tolist() == [False, True, True, False]


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_certain_correct_box_has_zero_loss_with_bf16_targets(kind):
    """Under DeepSpeed, Trainer casts all floats of a batch to the model's dtype."""
    targets = targets_of([BOX, [998, 501, 999, 503]])
    cast = {key: value.bfloat16() if value.is_floating_point() else value for key, value in targets.items()}
    logits = torch.full((len(targets["digit"]), 10), -100.0).scatter(1, targets["digit"][:, None], 100.0)
    assert box_loss(logits, cast, kind) == pytest.approx(0, abs=1e-4)


def test_w1_of_one_digit_one_step_off_is_its_place_value_over_four_numbers():
    targets = targets_of([[120, 252, 640, 931], [120, 252, 640, 931]])
    digits = targets["digit"].clone()
    digits[1] += 1  # 130 instead of 120, in one of eight numbers
    logits = torch.full((len(digits), 10), -100.0).scatter(1, digits[:, None], 100.0)
    assert box_loss(logits, targets, "w1").item() == pytest.approx(10 / 1000 / 8)


@pytest.mark.parametrize("seed", range(3))
def test_expected_box_is_the_mean_over_all_digit_combinations(seed):
    targets = targets_of([BOX])
    logits = random_logits(targets, seed)
    probabilities = logits.detach().softmax(-1)
    start, means = 0, []
    for value in BOX:
        length = len(str(value))
        rows = probabilities[start : start + length]
        combinations = itertools.product(range(10), repeat=length)
        mean = sum(int("".join(map(str, d))) * torch.prod(rows[range(length), d]) for d in combinations)
        means.append(mean / 1000)
        start += length
    torch.testing.assert_close(expected_boxes(logits, targets)[0], torch.stack(means).to(logits.dtype))


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_box_loss_gradient_matches_finite_differences(kind):
    targets = targets_of([BOX, [100, 100, 900, 900]])
    logits = random_logits(targets)
    assert torch.autograd.gradcheck(lambda x: box_loss(x, targets, kind), logits)
    gradient = torch.autograd.grad(box_loss(logits, targets, kind), logits)[0]
    edge_norms = torch.zeros(8, dtype=torch.float64).index_add(0, targets["edge"], gradient.norm(dim=1))
    assert (edge_norms.reshape(2, 4).sum(1) > 0).all(), "each box must have a gradient"


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_minimizing_the_box_loss_raises_iou(kind, seed):
    """GIoU and L1 raise the IoU of the expected box, W1 also that of the generated box.

    GIoU and L1 do not raise the latter: between two wrong modes, the mean can be right. Training adds the LM loss to them.
    """
    box = [120, 252, 640, 931]
    targets = targets_of([box])
    logits = random_logits(targets, seed, torch.float32)
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def iou() -> float:
        predicted = expected_boxes(logits.detach(), targets)[0] * 1000
        if kind == "w1":
            predicted = logits.argmax(-1).reshape(4, 3) @ torch.tensor([100, 10, 1])
        x0, y0, x1, y1 = predicted.tolist()
        return float(box_iou([[x0, y0, x1, y1]], [box])[0, 0]) if x0 < x1 and y0 < y1 else 0.0

    before = iou()
    for _ in range(150):
        optimizer.zero_grad()
        box_loss(logits, targets, kind).backward()
        optimizer.step()
    assert iou() > max(before, 0.9)


def test_decision_gradients_match_finite_differences_and_have_the_right_sign():
    goes_on = torch.tensor([True, True, False])
    logits = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decision_losses(x, goes_on), logits)
    fp_loss, fn_loss = decision_losses(logits, goes_on)
    fn_gradient = torch.autograd.grad(fn_loss, logits, retain_graph=True)[0]
    fp_gradient = torch.autograd.grad(fp_loss, logits)[0]
    # A gradient step favors continuing where objects follow and stopping where none follows, and changes nothing else.
    assert (fn_gradient[:2, 0] < 0).all() and (fn_gradient[:2, 1] > 0).all() and not fn_gradient[2].any()
    assert fp_gradient[2, 0] > 0 and fp_gradient[2, 1] < 0 and not fp_gradient[:2].any()


def test_count_of_false_positives_has_no_gradient():
    """This is why the loss terms are not counts: adding a count of generated boxes does not change the gradient."""
    logits = torch.randn(4, 10, requires_grad=True)
    false_positives = (logits.argmax(-1) != torch.tensor([1, 2, 3, 4])).float().sum()
    assert not false_positives.requires_grad
    loss = logits.logsumexp(-1).sum()
    with_count = torch.autograd.grad(loss + 0.5 * false_positives, logits, retain_graph=True)[0]
    assert torch.equal(with_count, torch.autograd.grad(loss, logits)[0])


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("boxes", [0, 1, 300])
def test_responses_of_any_length_have_finite_loss_and_gradient(kind, boxes):
    targets = targets_of([[i, i, i + 20, i + 30] for i in range(boxes)])
    hidden = torch.randn(1, 6000, 16, requires_grad=True)
    head = torch.nn.Linear(16, 64, bias=False)
    losses = BoxLosses(1.0, 0.5, 1.0, kind)
    terms = losses.terms(hidden, head, list(range(10)), targets)
    sum(losses.weigh(terms).values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(hidden.grad).all()
    assert (terms["iou"] == 0) == (boxes == 0) == (terms["fn"] == 0)
    assert terms["fp"] > 0, "even an empty response has a decision to stop"


SIDE = st.integers(0, 1000)


@given(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE), min_size=1, max_size=5))
def test_giou_equals_torchvision_and_is_bounded_for_reversed_boxes(rows):
    a, b = (torch.tensor(rows, dtype=torch.float64)[:, half] / 1000 for half in (slice(4), slice(4, 8)))
    b = torch.cat([torch.minimum(b[:, :2], b[:, 2:]), torch.maximum(b[:, :2], b[:, 2:]) + 0.001], 1)  # ordered
    giou = paired_giou(a, b)
    ordered = (a[:, 2:] > a[:, :2]).all(-1)
    assert ((giou >= -3 - 1e-9) & (giou <= 1 + 1e-9)).all()  # a reversal subtracts at most 1 for each axis
    torch.testing.assert_close(1 - giou[ordered], generalized_box_iou_loss(a[ordered], b[ordered]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("x0, x1", [(0.7, 0.3), (0.55, 0.45)], ids=["around the ground truth", "within it"])
def test_giou_gradient_reorders_reversed_corners(x0, x1):
    gt_box = torch.tensor([[0.4, 0.4, 0.6, 0.6]])
    box = torch.tensor([[x0, 0.45, x1, 0.55]], requires_grad=True)
    (-paired_giou(box, gt_box)).sum().backward()
    assert box.grad[0, 0] > 0 > box.grad[0, 2]  # a gradient step moves x0 left and x1 right


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is created inside the `with` block."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_memory_does_not_grow_with_vocabulary_times_length():
    vocabulary, length, width = 150_000, 4000, 8
    head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(1, length, width, requires_grad=True)
    targets = targets_of([[100, 200, 300, 400]] * 100)
    losses = BoxLosses(1.0, 0.5, 1.0)
    with LargestTensor() as seen:
        terms = losses.terms(hidden, head, list(range(10)), targets)
        sum(losses.weigh(terms).values()).backward()
    assert seen.numel <= length * width


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_targets_locate_digits_and_decisions(tiny_models, tmp_path, family):
    Image.new("RGB", (300, 200), "gray").save(tmp_path / "a.png")
    objects = [([10.0, 20, 110, 90], "cat"), ([0, 0, 300, 200], "traffic light 7")]
    records = [make_record("a", "a.png", 300, 200, objects), make_record("b", "a.png", 300, 200, [])]
    collator = make_collator(tiny_models[family], tmp_path).for_losses(teacher_forced=True, sampled=False)
    batch = collator([{"record": json.dumps(record)} for record in records])
    targets = batch["targets"]
    rows, positions = targets["digit_at"].T
    predicted = batch["input_ids"][rows, positions + 1]
    assert collator.tokenizer.convert_ids_to_tokens(predicted) == [str(digit) for digit in targets["digit"].tolist()]
    assert (batch["labels"][rows, positions + 1] == predicted).all()
    gt_boxes = torch.tensor([box for box, _ in objects]) / torch.tensor([300, 200] * 2)
    encoded = targets["boxes_xyxy"] / targets["sides"]
    torch.testing.assert_close(encoded, gt_boxes, atol=0.01, rtol=0)  # rounded to a coordinate step of the small image
    rows, positions = targets["decision_at"].T
    chosen = targets["decision_tokens"].gather(1, (~targets["goes_on"]).long()[:, None])[:, 0]
    assert (batch["input_ids"][rows, positions + 1] == chosen).all()
    assert targets["goes_on"].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("digit", (6, 1), r"digit has shape \(6, 1\) instead of \(6,\)"),
        ("place", (1,), r"place has shape \(1,\) instead of \(6,\)"),
        ("sides", (4,), r"sides has shape \(4,\) instead of \(2, 4\)"),
        ("goes_on", (2,), r"goes_on has shape \(2,\) instead of \(3,\)"),
        ("hidden", (6, 8), r"hidden states have shape \(6, 8\) instead of \(N, T, H\)"),
    ],
)
def test_tensors_of_the_wrong_shape_are_named(name, shape, problem):
    shapes = {"digit_at": (6, 2), "digit": (6,), "place": (6,), "edge": (6,), "boxes_xyxy": (2, 4), "sides": (2, 4)}
    shapes |= {"decision_at": (3, 2), "decision_tokens": (3, 2), "goes_on": (3,), "hidden": (1, 6, 8)}
    tensors = {key: torch.zeros(each) for key, each in shapes.items()}
    require_shapes(tensors["hidden"], tensors)
    tensors[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=problem):
        require_shapes(tensors["hidden"], tensors)
