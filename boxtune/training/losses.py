"""Losses on boxes that have a gradient: total = LM + iou_loss_weight · IoU + fp_loss_weight · FP + fn_loss_weight · FN.

Counting boxes in a generated text and adding the count to the loss adds a constant: its gradient is none. What is done here
instead is computed from the model's own distributions at the true answer's tokens (teacher forcing):

    IoU  every coordinate's expected value under the distributions of its digits; 1 − GIoU of that box with the true one
    FN   −log of the probability of going on, of the two tokens that decide it, where another object follows
    FP   −log of the probability of stopping, where none does: behind the last object, and at once where there is none

Only the positions that are needed are projected, and only onto the ten digits or the two tokens: nothing of the size of
vocabulary × length is made. boxtune/training/policy.py has the terms that are sampled instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, l1_loss, softplus

BOX_LOSSES = ("giou", "l1", "w1")
# What is logged where a loss on boxes is in use, in training and evaluation.
LOSSES = ("lm_loss", "iou_loss", "fp_loss", "fn_loss")


@dataclass(frozen=True)
class BoxLosses:
    """The weights of the terms, and which of BOX_LOSSES the IoU term is.

    giou: 1 − GIoU (Rezatofighi et al., arXiv 1902.09630) of the expected box. l1: mean distance of its edges, in shares of the
    picture's sides. w1: mean Wasserstein-1 distance of each digit's distribution from the true digit, weighted by the digit's
    place (the number token loss of arXiv 2411.02083, which takes whole numbers for tokens), in the same shares: unlike the
    other two it also punishes a distribution whose mean happens to be right. `end_token` is the weight of the LM's own loss
    on the tokens that end answers, against 1 on all others.
    """

    iou: float
    fp: float
    fn: float
    box_loss: str = "giou"
    end_token: float = 1.0

    def __bool__(self) -> bool:
        """Whether anything is added to the LM's loss."""
        return any((self.iou, self.fp, self.fn)) or self.end_token != 1

    @property
    def largest(self) -> float:
        return max(self.iou, self.fp, self.fn)

    def reweigh_ends(self, hidden: Tensor, head: torch.nn.Linear, targets: dict[str, Tensor]) -> Tensor:
        """What a sum of cross-entropies over all tokens lacks, for the tokens that end answers to weigh `end_token`."""
        ends = ~targets["goes_on"]
        rows, positions = targets["decision_at"][ends].T
        logits = head(hidden[rows, positions]).float()
        return (self.end_token - 1) * cross_entropy(logits, targets["decision_tokens"][ends, 1], reduction="sum")

    def terms(self, hidden: Tensor, head: torch.nn.Linear, digit_ids: list[int], targets: dict[str, Tensor]):
        """{"iou", "fp", "fn"}: unweighted means over boxes and decisions, 0 where there are none.

        `hidden` (N, T, H) are the last hidden states, `head` projects them onto the vocabulary, `digit_ids` are the ten
        digits' tokens, `targets` come from `collate_targets`. Computed in float32.
        """
        digits = _project(hidden, targets["digit_at"], head, torch.tensor(digit_ids, device=hidden.device))
        decisions = _project(hidden, targets["decision_at"], head, targets["decision_tokens"])
        fp_loss, fn_loss = decision_losses(decisions, targets["goes_on"])
        return {"iou": box_loss(digits, targets, self.box_loss), "fp": fp_loss, "fn": fn_loss}

    def weigh(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"iou", "fp", "fn"}, the terms or what sampled answers cost, each times its weight."""
        return {"iou": self.iou * parts["iou"], "fp": self.fp * parts["fp"], "fn": self.fn * parts["fn"]}


def _project(hidden: Tensor, at: Tensor, head: torch.nn.Linear, tokens: Tensor) -> Tensor:
    """(P, K) float32 logits at the P places `at` (row, position), of the K tokens: the same (K,) for all, or (P, K) of each."""
    states, rows = hidden[at[:, 0], at[:, 1]].float(), head.weight[tokens].float()
    logits = states @ rows.T if tokens.ndim == 1 else (states[:, None] * rows).sum(-1)
    return logits if head.bias is None else logits + head.bias[tokens].float()


def _place_values(targets: dict[str, Tensor]) -> Tensor:
    """(D,) what one step of each digit is worth in shares of the picture's side."""
    return targets["place"] / targets["sides"].flatten()[targets["edge"]]


def expected_boxes(digit_logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """(B, 4) expected boxes_xyxy in shares of the picture's sides, from (D, 10) logits of the digits.

    Each digit counts with the distribution that it has behind the true digits before it; a number keeps its true length.
    """
    values = torch.arange(10, device=digit_logits.device, dtype=digit_logits.dtype)
    shares = (digit_logits.softmax(-1) @ values) * _place_values(targets)
    flat = shares.new_zeros(targets["boxes_xyxy"].numel())
    return flat.index_add(0, targets["edge"], shares).reshape(-1, 4)


def box_loss(digit_logits: Tensor, targets: dict[str, Tensor], kind: str) -> Tensor:
    """The mean over boxes of one of BOX_LOSSES, from (D, 10) logits; 0 where there is no box."""
    true = targets["boxes_xyxy"] / targets["sides"]
    if not len(true):
        return digit_logits.sum() * 0.0
    if kind == "w1":
        distances = (torch.arange(10, device=true.device) - targets["digit"][:, None]).abs().to(digit_logits.dtype)
        return ((digit_logits.softmax(-1) * distances).sum(-1) * _place_values(targets)).sum() / true.numel()
    expected = expected_boxes(digit_logits, targets)
    return l1_loss(expected, true) if kind == "l1" else (1 - paired_giou(expected, true)).mean()


def paired_giou(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """(N,) generalised IoU of each pair of (N, 4) boxes, the second of them upright.

    An expected box may be inside out, which torchvision's version does not allow for. Its area and intersection are 0, and
    how far it is inside out, in shares of the hull, is taken off, so that it is always turned right.
    """
    a, b = boxes_a_xyxy, boxes_b_xyxy
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - overlap
    corners = torch.stack([a[:, :2], a[:, 2:], b[:, :2], b[:, 2:]])
    sides = corners.amax(0) - corners.amin(0)
    hull = sides.prod(-1)
    inside_out = ((a[:, :2] - a[:, 2:]).clamp(min=0) / sides).sum(-1)
    return overlap / union - (hull - union) / hull - inside_out


def decision_losses(logits: Tensor, goes_on: Tensor) -> tuple[Tensor, Tensor]:
    """(fp_loss, fn_loss) of (S, 2) logits of going on and stopping; each is 0 where no such decision stands."""
    surprise = softplus(torch.where(goes_on, logits[:, 1] - logits[:, 0], logits[:, 0] - logits[:, 1]))

    def mean(chosen: Tensor) -> Tensor:
        return (surprise * chosen).sum() / chosen.sum().clamp(min=1)

    return mean(~goes_on), mean(goes_on)
