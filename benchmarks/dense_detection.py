"""Training and scoring of a network that predicts a class and a box in each cell of a grid over the image.

Used by benchmarks.plain_detector and benchmarks.tower. Classes use sigmoid focal loss (arXiv 1708.02002) and boxes GIoU loss, in
the manner of FCOS (arXiv 1904.01355): an object is assigned to the cells in its central half.

A network maps a list of PIL images of one size to (B, H, W, classes) logits and (B, H, W, 4) distances in pixels from each
cell's center to the left, top, right and bottom edge of its box. Its `cell` is the side of a cell in pixels.
"""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss
from tqdm import tqdm

from boxtune.data.images import load_image
from boxtune.data.records import Record, answer_objects, image_path, with_objects
from boxtune.metrics.matching import match_images
from boxtune.metrics.scoring import total_rates

MAX_PIXELS = 50_176  # as in the recipes tiny_*
MULTIPLE = 32  # the sides of an input are multiples of this many pixels
BATCH, WARMUP = 16, 50
MIN_SCORE, MAX_BOXES, NMS_IOU = 0.05, 100, 0.5
THRESHOLDS = np.arange(0.05, 0.95, 0.05)


def input_image(record: Record, data: Path) -> Image.Image:
    """The image resized to about MAX_PIXELS, with sides that are multiples of MULTIPLE."""
    scale = (MAX_PIXELS / (record["width"] * record["height"])) ** 0.5
    width, height = (
        max(MULTIPLE, int(record[side] * scale / MULTIPLE + 0.5) * MULTIPLE) for side in ("width", "height")
    )
    return load_image(image_path(record, data)).resize((width, height), Image.Resampling.BICUBIC)


def input_boxes(record: Record, image: Image.Image) -> torch.Tensor:
    """(N, 4) ground-truth xyxy in pixels of the input."""
    boxes_xyxy = torch.tensor(answer_objects(record)[0], dtype=torch.float32).reshape(-1, 4)
    return boxes_xyxy * torch.tensor([image.width / record["width"], image.height / record["height"]] * 2)


def flipped(image: Image.Image, boxes_xyxy: torch.Tensor) -> tuple[Image.Image, torch.Tensor]:
    """The image and its (N, 4) boxes, mirrored left to right."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(1)
    mirrored = torch.stack([image.width - x1, y0, image.width - x0, y1], 1)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored


def cell_centers(height: int, width: int, cell: int) -> torch.Tensor:
    """(height, width, 2): x and y of every cell's center, in pixels of the input."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1) * cell


def assign_cells(boxes_xyxy: torch.Tensor, height: int, width: int, cell: int) -> torch.Tensor:
    """(height, width): the index of each cell's box, or -1 for background.

    A cell belongs to the smallest box whose central half contains the cell's center, or whose center is within half a cell of it.
    """
    found = torch.full((height, width), -1)
    x, y = cell_centers(height, width, cell).unbind(-1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
    for i in areas.argsort(descending=True).tolist():
        x0, y0, x1, y1 = boxes_xyxy[i].tolist()
        reach_x, reach_y = max((x1 - x0) / 4, cell / 2), max((y1 - y0) / 4, cell / 2)
        found[((x - (x0 + x1) / 2).abs() <= reach_x) & ((y - (y0 + y1) / 2).abs() <= reach_y)] = i
    return found


def to_boxes(edges: torch.Tensor, cell: int) -> torch.Tensor:
    """(..., H, W, 4) xyxy in pixels of the input, from (..., H, W, 4) distances to the edges."""
    centers = cell_centers(*edges.shape[-3:-1], cell)
    return torch.cat([centers - edges[..., :2], centers + edges[..., 2:]], -1)


def loss_of(
    network: nn.Module, images: list[Image.Image], boxes: list[torch.Tensor], labels: list[list[int]]
) -> torch.Tensor:
    """Focal loss on classes plus GIoU loss on boxes, per assigned cell.

    boxes: (N, 4) xyxy in pixels of the input for each image. labels: N class indices for each image.
    """
    logits, edges = network(images)
    _, height, width, _ = logits.shape
    targets, gt_boxes, masks = torch.zeros_like(logits), [], []
    for i, boxes_xyxy in enumerate(boxes):
        assigned = assign_cells(boxes_xyxy, height, width, network.cell)
        inside = assigned >= 0
        targets[i][inside] = functional.one_hot(
            torch.tensor(labels[i] or [0])[assigned[inside]], logits.shape[-1]
        ).float()
        gt_boxes.append(boxes_xyxy[assigned[inside]])
        masks.append(inside)
    mask = torch.stack(masks)
    predicted = to_boxes(edges, network.cell)[mask]
    cells = max(1, int(mask.sum()))
    class_loss = sigmoid_focal_loss(logits, targets, reduction="sum") / cells
    return class_loss + generalized_box_iou_loss(predicted, torch.cat(gt_boxes), reduction="sum") / cells


def batches(sizes: list[tuple[int, int]], draw: random.Random) -> list[list[int]]:
    """One epoch in random order: lists of up to BATCH indices of images with the same size."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i in draw.sample(range(len(sizes)), len(sizes)):
        groups[sizes[i]].append(i)
    made = [group[i : i + BATCH] for group in groups.values() for i in range(0, len(group), BATCH)]
    draw.shuffle(made)
    return made


def train(
    network: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    records: list[Record],
    data: Path,
    classes: list[str],
    images_shown: int,
    seed: int,
) -> None:
    """Train until `images_shown` images were shown: linear warm-up and decay of the learning rate, random horizontal flips."""
    draw = random.Random(seed)
    images = [input_image(record, data) for record in tqdm(records, desc="reading", unit="image", disable=None)]
    boxes = [input_boxes(record, image) for record, image in zip(records, images, strict=True)]
    labels = [[classes.index(name) for name in answer_objects(record)[1]] for record in records]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    shown, step, epoch = 0, 0, []
    with tqdm(total=images_shown, desc="training", unit="image", disable=None) as bar:
        while shown < images_shown:
            epoch = epoch or batches([image.size for image in images], draw)
            batch = epoch.pop()
            rate = min((step + 1) / WARMUP, 1) * (1 - shown / images_shown)
            for optimizer, values in zip(optimizers, peaks, strict=True):
                for group, peak in zip(optimizer.param_groups, values, strict=True):
                    group["lr"] = peak * rate
            pairs = [(images[i], boxes[i]) for i in batch]
            pairs = [flipped(*pair) if draw.random() < 0.5 else pair for pair in pairs]
            loss = loss_of(network, [p[0] for p in pairs], [p[1] for p in pairs], [labels[i] for i in batch])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            shown, step = shown + len(batch), step + 1
            bar.update(len(batch))
    network.eval()


@torch.no_grad()
def predict(network: nn.Module, record: Record, data: Path, classes: list[str]) -> dict:
    """A prediction with the fields that the scorer reads: at most MAX_BOXES boxes in pixels of the original image."""
    image = input_image(record, data)
    logits, edges = network([image])
    scores, class_indices = logits[0].sigmoid().flatten(0, 1).max(-1)
    boxes_xyxy = to_boxes(edges[0], network.cell).flatten(0, 1)
    likely = scores > MIN_SCORE
    boxes_xyxy, scores, class_indices = boxes_xyxy[likely], scores[likely], class_indices[likely]
    kept = batched_nms(boxes_xyxy, scores, class_indices, NMS_IOU)[:MAX_BOXES]
    limits = torch.tensor([record["width"], record["height"]] * 2)
    scaled = boxes_xyxy[kept] * limits / torch.tensor([image.width, image.height] * 2)
    scaled = torch.minimum(scaled.clamp(min=0), limits)
    objects = {
        "bbox": scaled.tolist(),
        "category": [classes[i] for i in class_indices[kept].tolist()],
        "score": scores[kept].tolist(),
    }
    return {"id": record["id"], "objects": objects, "problems": []}


def above(prediction: dict, threshold: float) -> dict:
    """The prediction without boxes below the score threshold."""
    return with_objects(prediction, [i for i, value in enumerate(prediction["objects"]["score"]) if value >= threshold])


def best_threshold(records: list[Record], predictions: list[dict]) -> float:
    """The score threshold with the highest F1 on these records."""

    def f1(threshold: float) -> float:
        return total_rates(match_images(records, [above(p, threshold) for p in predictions]))["f1"] or 0.0

    return float(max(THRESHOLDS, key=f1))
