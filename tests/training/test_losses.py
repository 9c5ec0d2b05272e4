"""Every term has a gradient, it points the right way, and nothing of the size of vocabulary × length is made for it."""

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
)
from tests.helpers.collators import make_collator
from tests.helpers.records import FAMILIES, make_record

THOUSANDTHS = CODECS["qwen3_vl"]


def answer_of(boxes: list[list[int]]) -> AnswerTokens:
    """An answer that is nothing but the digits of its boxes and a decision behind each, one token after the other."""
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
    rows = [(i, 1, answer_of(boxes)) for i, boxes in enumerate(answers)]
    return collate_targets(rows, [(448, 448)] * len(answers), THOUSANDTHS)


def random_logits(targets, seed=0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(targets["digit"]), 10, generator=generator, dtype=dtype).requires_grad_()


BOX = [7, 52, 340, 1000]  # one, two, three and four digits


def test_targets_hold_the_true_box_and_where_its_digits_are_predicted():
    targets = targets_of([], [BOX, [10, 20, 30, 40]])
    assert targets["boxes_xyxy"].tolist() == [BOX, [10, 20, 30, 40]]
    assert targets["sides"].tolist() == [[1000] * 4] * 2
    assert targets["digit"].tolist() == [7, 5, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 2, 0, 3, 0, 4, 0]
    # The answer's first token stands at 1 and its first digit behind that, so position 1 predicts the digit.
    assert targets["digit_at"][:3].tolist() == [[1, 1], [1, 2], [1, 3]]
    assert targets["goes_on"].tolist() == [False, True, True, False]


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_a_box_that_is_certain_and_right_costs_nothing_in_whatever_dtype_its_targets_travel(kind):
    """DeepSpeed's engine wants floats in the model's dtype, and Trainer casts all that it finds in a batch."""
    targets = targets_of([BOX, [998, 501, 999, 503]])
    cast = {key: value.bfloat16() if value.is_floating_point() else value for key, value in targets.items()}
    logits = torch.full((len(targets["digit"]), 10), -100.0).scatter(1, targets["digit"][:, None], 100.0)
    assert box_loss(logits, cast, kind) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_box_is_the_mean_over_all_numbers_that_the_digits_spell(seed):
    targets = targets_of([BOX])
    logits = random_logits(targets, seed)
    probabilities = logits.detach().softmax(-1)
    start, means = 0, []
    for value in BOX:
        length = len(str(value))
        rows = probabilities[start : start + length]
        spelt = itertools.product(range(10), repeat=length)
        means.append(sum(int("".join(map(str, d))) * torch.prod(rows[range(length), d]) for d in spelt) / 1000)
        start += length
    torch.testing.assert_close(expected_boxes(logits, targets)[0], torch.stack(means).to(logits.dtype))


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_gradient_of_the_box_loss_agrees_with_finite_differences(kind):
    targets = targets_of([BOX, [100, 100, 900, 900]])
    logits = random_logits(targets)
    assert torch.autograd.gradcheck(lambda x: box_loss(x, targets, kind), logits)
    gradient = torch.autograd.grad(box_loss(logits, targets, kind), logits)[0]
    pulled = torch.zeros(8, dtype=torch.float64).index_add(0, targets["edge"], gradient.norm(dim=1))
    assert (pulled.reshape(2, 4).sum(1) > 0).all(), "each box is pulled"


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_gradient_of_the_box_loss_lowers_the_true_cost(kind, seed):
    """Steps along it alone raise the expected box's IoU; W1 raises that of the box that would be generated, too.

    GIoU and L1 do not: a mean can be right between two wrong modes. In training the LM's loss stands beside them.
    """
    box = [120, 252, 640, 931]
    targets = targets_of([box])
    logits = random_logits(targets, seed, torch.float32)
    optimizer = torch.optim.Adam([logits], lr=0.1)

    def iou() -> float:
        reached = expected_boxes(logits.detach(), targets)[0] * 1000
        if kind == "w1":
            reached = logits.argmax(-1).reshape(4, 3) @ torch.tensor([100, 10, 1])
        x0, y0, x1, y1 = reached.tolist()
        return float(box_iou([[x0, y0, x1, y1]], [box])[0, 0]) if x0 < x1 and y0 < y1 else 0.0

    before = iou()
    for _ in range(150):
        optimizer.zero_grad()
        box_loss(logits, targets, kind).backward()
        optimizer.step()
    assert iou() > max(before, 0.9)


def test_gradient_of_the_decisions_agrees_with_finite_differences_and_points_the_right_way():
    goes_on = torch.tensor([True, True, False])
    logits = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decision_losses(x, goes_on), logits)
    fp_loss, fn_loss = decision_losses(logits, goes_on)
    fn_gradient = torch.autograd.grad(fn_loss, logits, retain_graph=True)[0]
    fp_gradient = torch.autograd.grad(fp_loss, logits)[0]
    # A step against the gradient raises going on where objects follow and stopping where none does, and touches no other.
    assert (fn_gradient[:2, 0] < 0).all() and (fn_gradient[:2, 1] > 0).all() and not fn_gradient[2].any()
    assert fp_gradient[2, 0] > 0 and fp_gradient[2, 1] < 0 and not fp_gradient[:2].any()


def test_gradient_of_a_count_is_none():
    """Why the terms are not counts: what is counted in a generated text does not depend on the logits by any gradient."""
    logits = torch.randn(4, 10, requires_grad=True)
    false_positives = (logits.argmax(-1) != torch.tensor([1, 2, 3, 4])).float().sum()
    assert not false_positives.requires_grad
    loss = logits.logsumexp(-1).sum()
    with_count = torch.autograd.grad(loss + 0.5 * false_positives, logits, retain_graph=True)[0]
    assert torch.equal(with_count, torch.autograd.grad(loss, logits)[0])


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("boxes", [0, 1, 300])
def test_answers_of_any_length_give_a_finite_loss_and_gradient(kind, boxes):
    targets = targets_of([[i, i, i + 20, i + 30] for i in range(boxes)])
    hidden = torch.randn(1, 6000, 16, requires_grad=True)
    head = torch.nn.Linear(16, 64, bias=False)
    losses = BoxLosses(1.0, 0.5, 1.0, kind)
    terms = losses.terms(hidden, head, list(range(10)), targets)
    sum(losses.weigh(terms).values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(hidden.grad).all()
    assert (terms["iou"] == 0) == (boxes == 0) == (terms["fn"] == 0)
    assert terms["fp"] > 0, "an empty answer must stop as well"


SIDE = st.integers(0, 1000)


@given(st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE), min_size=1, max_size=5))
def test_giou_equals_torchvision_and_stays_within_its_bounds_for_boxes_inside_out(rows):
    a, b = (torch.tensor(rows, dtype=torch.float64)[:, half] / 1000 for half in (slice(4), slice(4, 8)))
    b = torch.cat([torch.minimum(b[:, :2], b[:, 2:]), torch.maximum(b[:, :2], b[:, 2:]) + 0.001], 1)  # truth is upright
    giou = paired_giou(a, b)
    upright = (a[:, 2:] > a[:, :2]).all(-1)
    assert ((giou >= -3 - 1e-9) & (giou <= 1 + 1e-9)).all()  # at most the whole hull is taken off along each axis
    torch.testing.assert_close(1 - giou[upright], generalized_box_iou_loss(a[upright], b[upright]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("x0, x1", [(0.7, 0.3), (0.55, 0.45)], ids=["around the truth", "within it"])
def test_a_box_inside_out_is_turned_right(x0, x1):
    true = torch.tensor([[0.4, 0.4, 0.6, 0.6]])
    box = torch.tensor([[x0, 0.45, x1, 0.55]], requires_grad=True)
    (-paired_giou(box, true)).sum().backward()
    assert box.grad[0, 0] > 0 > box.grad[0, 2]  # x0 goes left, x1 goes right


class LargestTensor(TorchDispatchMode):
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
def test_a_batch_says_where_each_familys_digits_stand(tiny_models, tmp_path, family):
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "a.png")
    objects = [([10.0, 20, 110, 90], "cat"), ([0, 0, 300, 200], "traffic light 7")]
    records = [make_record("a", "a.png", 300, 200, objects), make_record("b", "a.png", 300, 200, [])]
    collator = make_collator(tiny_models[family], tmp_path).for_losses(teacher_forced=True, sampled=False)
    batch = collator([{"record": json.dumps(record)} for record in records])
    targets = batch["targets"]
    rows, positions = targets["digit_at"].T
    predicted = batch["input_ids"][rows, positions + 1]
    assert collator.tokenizer.convert_ids_to_tokens(predicted) == [str(digit) for digit in targets["digit"].tolist()]
    assert (batch["labels"][rows, positions + 1] == predicted).all()
    true = torch.tensor([box for box, _ in objects]) / torch.tensor([300, 200] * 2)
    written = targets["boxes_xyxy"] / targets["sides"]
    torch.testing.assert_close(written, true, atol=0.01, rtol=0)  # a coordinate step of the small picture
    rows, positions = targets["decision_at"].T
    chosen = targets["decision_tokens"].gather(1, (~targets["goes_on"]).long()[:, None])[:, 0]
    assert (batch["input_ids"][rows, positions + 1] == chosen).all()
    assert targets["goes_on"].tolist() == [True, True, False, False]
