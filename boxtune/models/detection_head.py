"""A detection head: boxes from one forward pass, without generating text.

The head reads what the language model reads and what it makes of it: the vision tower's output, and the last hidden states of
the image and the question. It never sees a response, so the states are the same in training and when a question is asked.

It is a DETR decoder (arXiv 2005.12872, the layers are those of transformers) with changes that made DETR learn from few images:
- Each image token proposes a box around its own center. The best proposals that do not overlap become the queries: their boxes,
  scores and features (two-stage Deformable DETR, arXiv 2010.04159, and RT-DETR, arXiv 2304.08069).
- Each layer refines boxes and scores of the layer before, and reads the boxes as its queries' positions (DAB-DETR, arXiv
  2201.12329). Every layer has its own loss.

Boxes are cxcywh in fractions of the image. Everything is computed in float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert, nms
from transformers import DetrConfig, PreTrainedTokenizerBase
from transformers.models.detr.modeling_detr import DetrDecoderLayer

from boxtune.models.caption_decoder import CaptionDecoder
from boxtune.models.language_states import LanguageStates

# Hidden size of a residual adapter: the model's, divided by this.
BOTTLENECK = 8
# The share of a focal loss that a new head starts with: every object is unlikely (RetinaNet, arXiv 1708.02002).
FIRST_SCORE = 0.01
# Sides of the box that an image token proposes first, as fractions of the image.
FIRST_SIDE = 0.2
# Of two proposals with a greater IoU, only the better one becomes a query.
PROPOSAL_IOU = 0.6
# Logits of what is no query or no asked class.
IMPOSSIBLE = -1e4
HEADS = 8


@dataclass(frozen=True)
class HeadShape:
    """llm_hidden_size: of the language model. hidden_size: of the head. queries: the most objects of an image. caption_layers: of
    the caption decoder; 0 for none."""

    llm_hidden_size: int
    hidden_size: int = 256
    queries: int = 100
    decoder_layers: int = 2
    caption_layers: int = 0


@dataclass(frozen=True)
class Seen:
    """What the head may see of each of N prompts. T: the length of the padded batch.

    is_image, is_question: (N, T) masks of the image tokens, and of all tokens before the response. grids: (rows, columns) of the
    image tokens of each prompt, in the order of the prompts.
    """

    is_image: Tensor
    is_question: Tensor
    grids: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Layer:
    """What one layer of the head finds.

    boxes_cxcywh: (N, Q, 4). logits: (N, Q, C) per class; (N, Q, 1) without `has_classes`: proposals only tell objects from
    background. exists: (N, Q) whether there is such a query; images with fewer tokens than others have fewer proposals.
    """

    boxes_cxcywh: Tensor
    logits: Tensor
    exists: Tensor
    has_classes: bool


@dataclass(frozen=True)
class Found:
    """proposals: one for each image token. centers: (N, I, 2) the tokens' (x, y) in fractions of the image. layers: what each
    decoder layer finds; the last is the result.

    queries: (N, Q, d) last states of the queries, with memory (N, M, d) and is_memory (N, M), for captions.
    """

    proposals: Layer
    centers: Tensor
    layers: list[Layer]
    queries: Tensor
    memory: Tensor
    is_memory: Tensor


class ResidualAdapter(nn.Module):
    """x + up(gelu(down(norm(x)))). It starts as the identity."""

    def __init__(self, size: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.down = nn.Linear(size, size // BOTTLENECK)
        self.up = nn.Linear(size // BOTTLENECK, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.up(nn.functional.gelu(self.down(self.norm(states))))


class DetectionHead(nn.Module):
    def __init__(self, shape: HeadShape):
        super().__init__()
        self.shape = shape
        llm, size = shape.llm_hidden_size, shape.hidden_size
        # ---- memory
        self.adapters = nn.ModuleDict({"vision": ResidualAdapter(llm), "hidden": ResidualAdapter(llm)})
        self.into = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(llm), nn.Linear(llm, size)) for name in self.adapters}
        )
        self.kinds = nn.Parameter(
            torch.randn(3, size) * 0.02
        )  # vision, hidden state of an image token, of another token
        self.position = _mlp(size, size, size, layers=2)
        # ---- proposals
        self.propose = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.LayerNorm(size))
        self.proposal_score = nn.Linear(size, 1)
        self.proposal_box = _mlp(size, size, 4, layers=3)
        # ---- decoder
        self.query_position = _mlp(2 * size, size, size, layers=2)
        config = DetrConfig(
            d_model=size,
            decoder_attention_heads=HEADS,
            decoder_ffn_dim=4 * size,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            attn_implementation="sdpa",
        )
        count = shape.decoder_layers
        self.layers = nn.ModuleList(DetrDecoderLayer(config) for _ in range(count))
        self.boxes = nn.ModuleList(_mlp(size, size, 4, layers=3) for _ in range(count))
        self.objectness = nn.ModuleList(nn.Linear(size, 1) for _ in range(count))
        # ---- classes
        self.label = nn.Linear(llm, size)
        self.likeness = nn.Linear(size, size)
        # ---- captions
        self.captions = CaptionDecoder(config, llm, shape.caption_layers) if shape.caption_layers else None
        self._start_unsure()

    def _start_unsure(self) -> None:
        """Boxes start where they are proposed, with the score of the proposal, and all proposals as unlikely."""
        for change in (self.proposal_box, *self.boxes):
            nn.init.zeros_(change[-1].weight)
            nn.init.zeros_(change[-1].bias)
        for score in self.objectness:
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)
        nn.init.constant_(self.proposal_score.bias, math.log(FIRST_SCORE / (1 - FIRST_SCORE)))

    def forward(self, states: LanguageStates, seen: Seen, labels: Tensor) -> Found:
        """What the head finds in N prompts.

        labels: (C, H) embeddings of the asked classes, from `label_embeddings`.
        """
        # ---- memory: vision tower and language model, side by side
        vision, is_vision = _rows(states.inputs.float(), seen.is_image)
        hidden, is_hidden = _rows(states.last.float(), seen.is_question)
        vision = self.into["vision"](self.adapters["vision"](vision))
        hidden = self.into["hidden"](self.adapters["hidden"](hidden))
        of_image, _ = _rows(seen.is_image[..., None], seen.is_question)  # (N, M, 1)
        centers = token_centers(seen.grids).to(vision.device)
        place = self.position(_waves(centers, self.shape.hidden_size // 2))
        hidden_place = torch.zeros_like(hidden).masked_scatter(of_image, place[is_vision])
        kinds = torch.where(of_image, self.kinds[1], self.kinds[2])
        memory = torch.cat([vision, hidden], dim=1)
        memory_place = torch.cat([place + self.kinds[0], hidden_place + kinds], dim=1)
        is_memory = torch.cat([is_vision, is_hidden], dim=1)

        # ---- one proposal for each image token
        hidden_of_image = torch.zeros_like(vision).masked_scatter(is_vision[..., None], hidden[of_image[..., 0]])
        tokens = self.propose(vision + hidden_of_image + place)
        anchors = torch.cat([centers, torch.full_like(centers, FIRST_SIDE)], dim=-1)
        scores = self.proposal_score(tokens).masked_fill(~is_vision[..., None], IMPOSSIBLE)
        proposals = Layer(_moved(anchors, self.proposal_box(tokens)), scores, is_vision, has_classes=False)

        # ---- the best proposals, refined layer by layer
        best, exists = best_proposals(proposals, self.shape.queries)
        reference, score, query = (
            values.gather(1, best[..., None].expand(-1, -1, values.shape[-1]))
            for values in (proposals.boxes_cxcywh.detach(), scores.detach(), tokens)
        )
        layers = []
        others = exists[:, None, None] | torch.eye(best.shape[1], dtype=torch.bool, device=exists.device)
        label_keys = self.label(labels.float())
        for layer, box, objectness in zip(self.layers, self.boxes, self.objectness, strict=True):
            query = layer(
                query,
                attention_mask=others,
                spatial_position_embeddings=memory_place,
                object_queries_position_embeddings=self.query_position(_waves(reference, self.shape.hidden_size // 2)),
                encoder_hidden_states=memory,
                encoder_attention_mask=is_memory[:, None, None],
            )
            boxes, score = _moved(reference, box(query)), score + objectness(query)
            likeness = self.likeness(query) @ label_keys.T / math.sqrt(self.shape.hidden_size)
            logits = (score + likeness).masked_fill(~exists[..., None], IMPOSSIBLE)
            layers.append(Layer(boxes, logits, exists, has_classes=True))
            reference, score = boxes.detach(), score.detach()
        return Found(proposals, centers, layers, query, memory, is_memory)


@torch.no_grad()
def best_proposals(proposals: Layer, count: int) -> tuple[Tensor, Tensor]:
    """((N, Q) the best proposals of each image that do not overlap, at most `count`, best first; (N, Q) what is no padding)."""
    boxes_xyxy = box_convert(proposals.boxes_cxcywh, "cxcywh", "xyxy")
    kept = []
    for boxes, scores, exists in zip(boxes_xyxy, proposals.logits[..., 0], proposals.exists, strict=True):
        best = nms(boxes, scores, PROPOSAL_IOU)
        kept.append(best[exists[best]][:count])
    lengths = torch.tensor([len(best) for best in kept], device=boxes_xyxy.device)
    padded = pad_sequence(kept, batch_first=True)
    return padded, torch.arange(padded.shape[1], device=boxes_xyxy.device) < lengths[:, None]


def seen_in(
    input_ids: Tensor, is_question: Tensor, image_grid_thw: Tensor, image_token_id: int, merge_size: int
) -> Seen:
    """What the head may see of a batch with one image per prompt. `input_ids`, `is_question`: (N, T)."""
    grids = [(rows // merge_size, columns // merge_size) for _, rows, columns in image_grid_thw.tolist()]
    return Seen((input_ids == image_token_id) & is_question, is_question, grids)


def label_embeddings(embedding: nn.Embedding, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> Tensor:
    """(C, H): the mean embedding of each label's tokens, without gradient."""
    rows = embedding.weight.detach()
    token_ids = tokenizer(list(labels), add_special_tokens=False)["input_ids"]
    return torch.stack([rows[torch.tensor(ids, device=rows.device)].float().mean(0) for ids in token_ids])


def token_centers(grids: Sequence[tuple[int, int]]) -> Tensor:
    """(N, I, 2): the (x, y) center of each image token in fractions of the image, padded with zeros."""
    centers = []
    for rows, columns in grids:
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        centers.append(torch.stack([x.flatten(), y.flatten()], dim=-1))
    return pad_sequence(centers, batch_first=True)


def _rows(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """((N, M, …) the states at `mask`, padded with zeros, (N, M) what is no padding). `states`: (N, T, …)."""
    kept = [row[keep] for row, keep in zip(states, mask, strict=True)]
    lengths = torch.tensor([len(row) for row in kept], device=mask.device)
    padded = pad_sequence(kept, batch_first=True)
    return padded, torch.arange(padded.shape[1], device=mask.device) < lengths[:, None]


def _waves(values: Tensor, size: int) -> Tensor:
    """(…, K) numbers from 0 to 1 as (…, K · size) sines and cosines, as in DETR."""
    frequencies = 2 * math.pi / 10000 ** (torch.arange(size // 2, device=values.device) * 2 / size)
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _moved(boxes_cxcywh: Tensor, change: Tensor) -> Tensor:
    """The boxes with `change` added to their logits."""
    return (boxes_cxcywh.logit(eps=1e-4) + change).sigmoid()


def _mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    sizes = [inputs, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for first, second in pairwise(sizes):
        parts += [nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(*parts[:-1])
