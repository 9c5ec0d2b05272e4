"""The loss of the detection head: Hungarian assignment, then L1, GIoU and focal objectness for every layer.

    Σ over proposals and layers of  bbox · L1 + giou · (1 − GIoU) + objectness · focal,   + caption · cross-entropy

The terms are sums over matched boxes (L1, GIoU) or all queries (focal), divided by the number of ground-truth boxes. Assignment
and focal loss are those of Deformable DETR (arXiv 2010.04159), whose constants are kept here. The caption term is the mean
cross-entropy of a caption's tokens, summed over the boxes that the last layer matches, divided by the number of examples.
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
HEAD_TERMS = ("bbox", "giou", "objectness")
# What a query costs that does not exist: more than any other.
_NEVER = 1e6


@dataclass(frozen=True)
class DetectionLoss:
    """The weights of the terms (recipe keys detection_NAME_weight)."""

    bbox: float = 5.0
    giou: float = 2.0
    objectness: float = 1.0
    caption: float = 0.0

    def terms(self, layers: list[Layer], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """{term: its unweighted sum over boxes or queries of all layers}; not yet divided by the number of boxes.

        The first of `layers` are the proposals, which have no class. `targets`: from `collate_head_targets`. The caption term is
        `caption_loss`.
        """
        targets = {key: value.to(layers[0].logits.device) for key, value in targets.items()}
        sums = [self._layer_terms(layer, targets) for layer in layers]
        return {name: torch.stack([terms[name] for terms in sums]).sum() for name in HEAD_TERMS}

    def weigh(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: getattr(self, name) * term for name, term in terms.items()}

    def _layer_terms(self, layer: Layer, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        row, query, box = assign(layer, targets)
        true_cxcywh = targets["boxes"][box].float() / UNITS
        found_cxcywh = layer.boxes_cxcywh[row, query]
        goal = torch.zeros_like(layer.logits)
        goal[row, query, _labels(layer, targets)[box]] = 1.0
        counts = layer.exists & targets["asks_for_boxes"][:, None]
        counts = counts[..., None] & _asked(layer, targets)[:, None]
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
def assign(layer: Layer, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
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
    found = torch.tensor(np.array(pairs, dtype=np.int64).reshape(-1, 3), device=layer.logits.device)
    return found[:, 0], found[:, 1], found[:, 2]


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


def _labels(layer: Layer, targets: dict[str, Tensor]) -> Tensor:
    """(B,) the column of each box in the layer's logits."""
    return targets["label"] if layer.has_classes else torch.zeros_like(targets["label"])


def _asked(layer: Layer, targets: dict[str, Tensor]) -> Tensor:
    """(N, C) whether a class was asked for; others count neither as found nor as absent."""
    return targets["asked"] if layer.has_classes else torch.ones_like(targets["asked"][:, :1])


def _corners(boxes_cxcywh: Tensor) -> Tensor:
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy")
