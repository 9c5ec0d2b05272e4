"""The loss of the detection head: L1, GIoU and focal objectness of the proposals and of every layer.

    Σ over proposals and layers of  bbox · L1 + giou · (1 − GIoU) + objectness · focal,   + caption · cross-entropy

In the layers, queries and ground-truth boxes are matched one to one (Hungarian assignment). Assignment and focal loss are those
of Deformable DETR (arXiv 2010.04159), whose constants are kept here. The terms are sums over matched boxes (L1, GIoU) or all
queries (focal), divided by the number of ground-truth boxes. A query in an ignored box counts neither as found nor as wrong.

Of the proposals, every image token in the middle of a box learns to propose it, as in FCOS (arXiv 1904.01355): from few images,
that is learned much sooner than one token for each box. Their terms are scaled to the same number of boxes.

The caption term is the mean cross-entropy of a caption's tokens, summed over the boxes that the last layer matches, divided by
the number of examples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.ops import box_convert, generalized_box_iou

from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.batching.head_targets import UNITS
from boxtune.models.caption_decoder import MAX_TOKENS
from boxtune.models.detection_head import DetectionHead, Found, Layer
from boxtune.training.losses import paired_giou

# Costs of an assignment: class, L1 and GIoU.
COST_CLASS, COST_BBOX, COST_GIOU = 2.0, 5.0, 2.0
# Focal loss (arXiv 1708.02002).
ALPHA, GAMMA = 0.25, 2.0
# (row, query, box) of every matched pair.
Matched = tuple[Tensor, Tensor, Tensor]
HEAD_TERMS = ("bbox", "giou", "objectness")
# What a query costs that does not exist: more than any other.
_NEVER = 1e6


@dataclass(frozen=True)
class DetectionLoss:
    """The weights of the terms (recipe keys detection_NAME_weight).

    trains_model: whether the gradient goes on into the model; without it, the head learns to read what the LM loss makes.
    """

    bbox: float = 5.0
    giou: float = 2.0
    objectness: float = 1.0
    caption: float = 0.0
    trains_model: bool = False

    def terms(self, found: Found, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """{term: its unweighted sum over boxes or queries of all layers}; not yet divided by the number of boxes.

        `targets`: from `collate_head_targets`. The caption term is `caption_loss`.
        """
        targets = {key: value.to(found.queries.device) for key, value in targets.items()}
        proposed = assign_tokens(found.centers, found.proposals.exists, targets)
        scale = len(targets["boxes"]) / len(proposed[0]) if len(proposed[0]) else 1.0
        sums = [{name: scale * term for name, term in layer_terms(found.proposals, proposed, targets).items()}]
        sums += [layer_terms(layer, assign(layer, targets), targets) for layer in found.layers]
        return {name: torch.stack([terms[name] for terms in sums]).sum() for name in HEAD_TERMS}

    def weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: getattr(self, name) * term for name, term in terms.items()}


def layer_terms(layer: Layer, matched: Matched, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """The unweighted sums of a layer, or of the proposals."""
    row, query, box = matched
    true_cxcywh = targets["boxes"][box].float() / UNITS
    found_cxcywh = layer.boxes_cxcywh[row, query]
    goal = torch.zeros_like(layer.logits)
    goal[row, query, _labels(layer, targets)[box]] = 1.0
    counts = layer.exists & targets["asks_for_boxes"][:, None]
    counts = counts[..., None] & _asked(layer, targets)[:, None] & ~(_in_ignored(layer, targets) & (goal == 0))
    return {
        "bbox": (found_cxcywh - true_cxcywh).abs().sum(),
        "giou": (1 - paired_giou(_corners(found_cxcywh), _corners(true_cxcywh))).sum(),
        "objectness": focal(layer.logits, goal)[counts].sum(),
    }


def caption_loss(head: DetectionHead, found: Found, targets: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """The mean cross-entropy of each matched box's caption, summed over the boxes. `embeddings`: (V, H) of the language model."""
    targets = {key: value.to(found.queries.device) for key, value in targets.items()}
    row, query, box = assign(found.layers[-1], targets)
    if not len(box):
        return found.queries.sum() * 0.0
    captions = targets["captions"][box][:, :MAX_TOKENS]
    words = captions[:, :-1].clamp(min=0)  # padding comes after the end, so that nothing that counts sees it
    logits = head.captions(found.queries[row, query], found.memory[row], found.is_memory[row], words, embeddings)
    losses = cross_entropy(logits.transpose(1, 2), captions, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses.sum(1) / (captions != IGNORE_INDEX).sum(1)).sum()


@torch.no_grad()
def assign_tokens(centers: Tensor, exists: Tensor, targets: dict[str, Tensor]) -> Matched:
    """(row, token, box): the image tokens whose center lies in the middle of a box, and always the one nearest to it.

    centers: (N, I, 2). exists: (N, I). The middle is half as wide and high as the box. A token in the middle of several boxes
    belongs to the smallest one.
    """
    pairs = []
    for row in range(len(centers)):
        boxes = torch.nonzero(targets["row"] == row)[:, 0]
        if not len(boxes) or not targets["asks_for_boxes"][row]:
            continue
        own = centers[row][exists[row]]
        true_cxcywh = targets["boxes"][boxes].float() / UNITS
        offsets = own[:, None] - true_cxcywh[None, :, :2]
        inside = (offsets.abs() < true_cxcywh[:, 2:] / 4).all(-1)  # (I, B)
        chosen = torch.where(inside, true_cxcywh[:, 2:].prod(-1), torch.inf).argmin(1)
        nearest = offsets.square().sum(-1).argmin(0)
        inside[nearest, torch.arange(len(boxes))] = True
        chosen[nearest] = torch.arange(len(boxes), device=chosen.device)
        pairs += [(row, token, boxes[chosen[token]]) for token in torch.nonzero(inside.any(1))[:, 0].tolist()]
    return _as_matched(pairs, centers.device)


@torch.no_grad()
def assign(layer: Layer, targets: dict[str, Tensor]) -> Matched:
    """(row, query, box) of every matched pair: in each row, the queries and boxes whose assignment costs least together.

    If a row has fewer queries than boxes, some boxes stay unmatched.
    """
    labels = _labels(layer, targets)
    pairs = []
    for row in range(len(layer.logits)):
        boxes = torch.nonzero(targets["row"] == row)[:, 0]
        if not len(boxes) or not targets["asks_for_boxes"][row]:
            continue
        cost = _costs(layer, row, targets["boxes"][boxes].float() / UNITS, labels[boxes])
        queries, chosen = linear_sum_assignment(cost.cpu().numpy())
        real = layer.exists[row].cpu().numpy()[queries]
        pairs += [(row, query, boxes[i]) for query, i in zip(queries[real], chosen[real], strict=True)]
    return _as_matched(pairs, layer.logits.device)


def _as_matched(pairs: list[tuple], device: torch.device) -> Matched:
    table = torch.tensor(np.array(pairs, dtype=np.int64).reshape(-1, 3), device=device)
    return table[:, 0], table[:, 1], table[:, 2]


def _costs(layer: Layer, row: int, true_cxcywh: Tensor, labels: Tensor) -> Tensor:
    """(Q, B) cost of matching each query of a row with each of its boxes; large numbers where a prediction is not finite."""
    logits = layer.logits[row][:, labels]
    class_cost = focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits))
    boxes = layer.boxes_cxcywh[row]
    cost = COST_CLASS * class_cost + COST_BBOX * torch.cdist(boxes, true_cxcywh, p=1)
    cost = cost - COST_GIOU * generalized_box_iou(_corners(boxes), _corners(true_cxcywh))
    return torch.where(layer.exists[row][:, None], cost, _NEVER).nan_to_num(_NEVER, _NEVER, -_NEVER)


def focal(logits: Tensor, goal: Tensor) -> Tensor:
    """The focal loss of each logit, whose goal is 0 or 1."""
    error = (goal - logits.sigmoid()).abs()
    alpha = ALPHA * goal + (1 - ALPHA) * (1 - goal)
    return alpha * error**GAMMA * binary_cross_entropy_with_logits(logits, goal, reduction="none")


@torch.no_grad()
def _in_ignored(layer: Layer, targets: dict[str, Tensor]) -> Tensor:
    """(N, Q, C) whether at least half of a query's box is in an ignored box of the class, as in scoring."""
    inside = torch.zeros_like(layer.logits, dtype=torch.bool)
    ignored_xyxy = _corners(targets["ignored"].float() / UNITS)
    columns = targets["ignored_label"] if layer.has_classes else torch.zeros_like(targets["ignored_label"])
    for box_xyxy, row, column in zip(ignored_xyxy, targets["ignored_row"], columns, strict=True):
        boxes_xyxy = _corners(layer.boxes_cxcywh[row])
        low, high = torch.maximum(boxes_xyxy[:, :2], box_xyxy[:2]), torch.minimum(boxes_xyxy[:, 2:], box_xyxy[2:])
        shared = (high - low).clamp(min=0).prod(-1)
        inside[row, :, column] |= shared >= layer.boxes_cxcywh[row, :, 2:].prod(-1) / 2
    return inside


def _labels(layer: Layer, targets: dict[str, Tensor]) -> Tensor:
    """(B,) the column of each box in the layer's logits."""
    return targets["label"] if layer.has_classes else torch.zeros_like(targets["label"])


def _asked(layer: Layer, targets: dict[str, Tensor]) -> Tensor:
    """(N, C) whether a class was asked for; others count neither as found nor as absent."""
    return targets["asked"] if layer.has_classes else torch.ones_like(targets["asked"][:, :1])


def _corners(boxes_cxcywh: Tensor) -> Tensor:
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")
