"""Box losses with a gradient: total = LM + iou_loss_weight · IoU + fp_loss_weight · FP + fn_loss_weight · FN.

A count of boxes in generated text is a constant, so adding it to the loss adds no gradient. These terms are computed from the
model's own token distributions at the target response (teacher forcing):

    IoU  1 − GIoU between the ground-truth box and the box of expected coordinates under the digits' distributions
    FN   −log p(continue) at each decision where another object follows
    FP   −log p(stop) at each decision where none follows: after the last object, or at the start of an empty response

p is normalized over the two tokens that make the decision. Only the positions needed are projected, and only onto the ten
digits or the two tokens, so no tensor of size vocabulary × length is made. boxtune/training/policy.py has the loss on sampled
responses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss, softplus

BOX_LOSSES = ("giou", "l1", "w1")
# The keys logged in training and evaluation when a box loss is in use.
LOSSES = ("lm_loss", "iou_loss", "fp_loss", "fn_loss")


# {target: its shape}, as in collate_targets. A letter is a size that several targets share.
_TARGET_SHAPES = {
    "digit_at": ("D", 2),
    "digit": ("D",),
    "place": ("D",),
    "edge": ("D",),
    "boxes_xyxy": ("B", 4),
    "sides": ("B", 4),
    "decision_at": ("S", 2),
    "decision_tokens": ("S", 2),
    "goes_on": ("S",),
}


def require_shapes(hidden: Tensor, targets: dict[str, Tensor]) -> None:
    """Raises ValueError that lists the tensors of the wrong shape. Broadcasting would make a loss of them all the same."""
    problems = [] if hidden.ndim == 3 else [f"hidden states have shape {tuple(hidden.shape)} instead of (N, T, H)"]
    sizes: dict[str | int, int] = {}
    for name, expected in _TARGET_SHAPES.items():
        shape = tuple(targets[name].shape)
        wanted = tuple(size if isinstance(size, int) else sizes.get(size, size) for size in expected)
        if len(shape) != len(wanted) or any(isinstance(b, int) and a != b for a, b in zip(shape, wanted, strict=True)):
            problems.append(
                f"{name} has shape {shape} instead of ({', '.join(map(str, wanted))}{',' * (len(wanted) == 1)})"
            )
        else:
            sizes |= {size: length for size, length in zip(expected, shape, strict=True) if isinstance(size, str)}
    if problems:
        raise ValueError(f"the box losses cannot be computed: {'; '.join(problems)}.")


@dataclass(frozen=True)
class BoxLosses:
    """The weights of the terms, and the kind of IoU term, one of BOX_LOSSES.

    giou: 1 − GIoU (Rezatofighi et al., arXiv 1902.09630) of the expected box.
    l1: mean distance of the expected box's edges, as fractions of the image's sides.
    w1: mean Wasserstein-1 distance between each digit's distribution and the true digit, weighted by the digit's place value,
    in the same fractions (the number token loss of arXiv 2411.02083, which uses one token per number). Unlike the other two,
    it also penalizes a spread-out distribution whose mean happens to be right.
    end_token: weight of the LM loss on the tokens that end responses; all other tokens have weight 1.
    """

    iou: float
    fp: float
    fn: float
    box_loss: str = "giou"
    end_token: float = 1.0

    def __bool__(self) -> bool:
        """Whether these weights change the LM loss."""
        return any((self.iou, self.fp, self.fn)) or self.end_token != 1

    @property
    def largest(self) -> float:
        return max(self.iou, self.fp, self.fn)

    def reweigh_ends(self, hidden: Tensor, head: torch.nn.Linear, targets: dict[str, Tensor]) -> Tensor:
        """The amount to add to a summed cross-entropy so that tokens that end responses have weight `end_token`."""
        ends = ~targets["goes_on"]
        rows, positions = targets["decision_at"][ends].T
        logits = head(hidden[rows, positions]).float()
        return (self.end_token - 1) * cross_entropy(logits, targets["decision_tokens"][ends, 1], reduction="sum")

    def terms(self, hidden: Tensor, head: torch.nn.Linear, digit_ids: list[int], targets: dict[str, Tensor]):
        """{"iou", "fp", "fn"}: unweighted means over boxes and decisions; 0 if there are none. Computed in float32.

        `hidden`: (N, T, H) last hidden states. `head`: projects them onto the vocabulary. `digit_ids`: tokens of the ten digits.
        `targets`: from `collate_targets`.
        """
        require_shapes(hidden, targets)
        digits = _project(hidden, targets["digit_at"], head, torch.tensor(digit_ids, device=hidden.device))
        decisions = _project(hidden, targets["decision_at"], head, targets["decision_tokens"])
        fp_loss, fn_loss = decision_losses(decisions, targets["goes_on"])
        return {"iou": box_loss(digits, targets, self.box_loss), "fp": fp_loss, "fn": fn_loss}

    def weigh(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"iou", "fp", "fn"}: each part (a term, or a cost of sampled responses) times its weight."""
        return {"iou": self.iou * parts["iou"], "fp": self.fp * parts["fp"], "fn": self.fn * parts["fn"]}


def _project(hidden: Tensor, at: Tensor, head: torch.nn.Linear, tokens: Tensor) -> Tensor:
    """(P, K) float32 logits of K tokens at the P positions `at` (row, position). `tokens`: (K,) for all positions, or (P, K)."""
    states, rows = hidden[at[:, 0], at[:, 1]].float(), head.weight[tokens].float()
    logits = states @ rows.T if tokens.ndim == 1 else (states[:, None] * rows).sum(-1)
    return logits if head.bias is None else logits + head.bias[tokens].float()


def _place_values(targets: dict[str, Tensor]) -> Tensor:
    """(D,) place value of each digit, as a fraction of the image's side."""
    return targets["place"] / targets["sides"].flatten()[targets["edge"]]


def expected_boxes(digit_logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """(B, 4) expected boxes_xyxy as fractions of the image's sides, from (D, 10) digit logits.

    Each digit's distribution is conditioned on the true digits before it. A number keeps its true number of digits.
    """
    values = torch.arange(10, device=digit_logits.device, dtype=digit_logits.dtype)
    shares = (digit_logits.softmax(-1) @ values) * _place_values(targets)
    flat = shares.new_zeros(targets["boxes_xyxy"].numel())
    return flat.index_add(0, targets["edge"], shares).reshape(-1, 4)


def box_loss(digit_logits: Tensor, targets: dict[str, Tensor], kind: str) -> Tensor:
    """One of BOX_LOSSES as a mean over boxes, from (D, 10) digit logits; 0 if there is no box."""
    true = targets["boxes_xyxy"] / targets["sides"]
    if not len(true):
        return digit_logits.sum() * 0.0
    if kind == "w1":
        distances = (torch.arange(10, device=true.device) - targets["digit"][:, None]).abs().to(digit_logits.dtype)
        return ((digit_logits.softmax(-1) * distances).sum(-1) * _place_values(targets)).sum() / true.numel()
    expected = expected_boxes(digit_logits, targets)
    return l1_loss(expected, true) if kind == "l1" else (1 - paired_giou(expected, true)).mean()


def paired_giou(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """(N,) generalized IoU of each pair of (N, 4) boxes; the second box must have ordered corners.

    An expected box may have reversed corners, which torchvision's version does not handle. Such a box has area and intersection
    0, and the amount of reversal, as a fraction of the enclosing box, is subtracted, so that the gradient restores the order.
    """
    a, b = boxes_a_xyxy, boxes_b_xyxy
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - overlap
    corners = torch.stack([a[:, :2], a[:, 2:], b[:, :2], b[:, 2:]])
    sides = corners.amax(0) - corners.amin(0)
    hull = sides.prod(-1)
    reversal = ((a[:, :2] - a[:, 2:]).clamp(min=0) / sides).sum(-1)
    return overlap / union - (hull - union) / hull - reversal


def decision_losses(logits: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
    """(fp_loss, fn_loss) from (S, 2) logits of continuing and stopping; each is 0 if there is no such decision."""
    surprise = softplus(torch.where(goes_on, logits[:, 1] - logits[:, 0], logits[:, 0] - logits[:, 1]))

    def mean(chosen: Tensor) -> Tensor:
        return (surprise * chosen).sum() / chosen.sum().clamp(min=1)

    return mean(~goes_on), mean(goes_on)
