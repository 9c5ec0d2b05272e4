"""A plain convolutional detector of 2.8 million parameters, trained on a prepared dataset from random weights.

    python -m benchmarks.plain_detector data/nutrition [--steps 1000] [--seed 0]

It is a reference for the recipes of the embedded model: the same images at the same size, and the same scorer. Objects that only
this detector finds are visible in the pixels, so the images are not what limits the embedded model.

The network is residual with one output grid of eight pixels per cell. Classes use sigmoid focal loss (arXiv 1708.02002) and
boxes GIoU loss, in the manner of FCOS (arXiv 1904.01355): an object is assigned to the cells in its central half. The score
threshold is the best one on validation.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss
from tqdm import trange

from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument
from boxtune.data.dataset import read_info, read_records
from boxtune.data.images import load_image
from boxtune.data.questions import as_asked
from boxtune.data.records import Record, answer_objects, image_path, with_objects
from boxtune.metrics.matching import match_images
from boxtune.metrics.scoring import score, total_rates

MAX_PIXELS = 50_176  # as in the recipes tiny_*
CELL, MULTIPLE = 8, 32  # pixels per grid cell; the input's sides are multiples of MULTIPLE
BATCH, PEAK_RATE, WARMUP = 16, 2e-3, 50
MIN_SCORE, MAX_BOXES, NMS_IOU = 0.05, 100, 0.5
THRESHOLDS = np.arange(0.05, 0.95, 0.05)


def block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.SiLU())


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.inner = nn.Sequential(block(channels, channels // 2), block(channels // 2, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Detector(nn.Module):
    """(B, 3, H, W) pixels from -1 to 1 → (B, H / 8, W / 8, classes) logits, and (B, H / 8, W / 8, 4) distances in pixels from
    each cell's center to the left, top, right and bottom edge of its box."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.Sequential(block(3, 24, 2), block(24, 48, 2), Residual(48))
        self.eighth = nn.Sequential(block(48, 96, 2), Residual(96), Residual(96))
        self.sixteenth = nn.Sequential(block(96, 160, 2), Residual(160), Residual(160))
        self.thirty_second = nn.Sequential(block(160, 256, 2), Residual(256), Residual(256))
        self.laterals = nn.ModuleList(nn.Conv2d(channels, 128, 1) for channels in (96, 160, 256))
        self.head = nn.Sequential(block(128, 128), block(128, 128))
        self.classes, self.edges = nn.Conv2d(128, classes, 1), nn.Conv2d(128, 4, 1)
        nn.init.constant_(self.classes.bias, -4.0)  # initially nothing is an object, as focal loss requires

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.eighth(self.stem(pixels))
        middle = self.sixteenth(fine)
        coarse = self.thirty_second(middle)
        fine, middle, coarse = (layer(x) for layer, x in zip(self.laterals, (fine, middle, coarse), strict=True))
        middle = middle + functional.interpolate(coarse, scale_factor=2)
        features = self.head(fine + functional.interpolate(middle, scale_factor=2))
        edges = functional.softplus(self.edges(features)) * 2 * CELL
        return self.classes(features).permute(0, 2, 3, 1), edges.permute(0, 2, 3, 1)


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


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) from -1 to 1; smaller images are padded on the right and at the bottom."""
    height, width = max(image.height for image in images), max(image.width for image in images)
    pixels = np.zeros((len(images), height, width, 3), np.float32)
    for row, image in zip(pixels, images, strict=True):
        row[: image.height, : image.width] = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def cell_centers(height: int, width: int) -> torch.Tensor:
    """(height, width, 2): x and y of every cell's center, in pixels of the input."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1) * CELL


def assign_cells(boxes_xyxy: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(height, width): the index of each cell's box, or -1 for background.

    A cell belongs to the smallest box whose central half contains the cell's center, or whose center is within half a cell of it.
    """
    found = torch.full((height, width), -1)
    x, y = cell_centers(height, width).unbind(-1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
    for i in areas.argsort(descending=True).tolist():
        x0, y0, x1, y1 = boxes_xyxy[i].tolist()
        reach_x, reach_y = max((x1 - x0) / 4, CELL / 2), max((y1 - y0) / 4, CELL / 2)
        found[((x - (x0 + x1) / 2).abs() <= reach_x) & ((y - (y0 + y1) / 2).abs() <= reach_y)] = i
    return found


def loss_of(
    model: Detector, images: list[Image.Image], boxes: list[torch.Tensor], labels: list[list[int]]
) -> torch.Tensor:
    """Focal loss on classes plus GIoU loss on boxes, per assigned cell.

    boxes: (N, 4) xyxy in pixels of the input for each image. labels: N class indices for each image.
    """
    logits, edges = model(to_pixels(images))
    _, height, width, _ = logits.shape
    targets, gt_boxes, masks = torch.zeros_like(logits), [], []
    for i, boxes_xyxy in enumerate(boxes):
        assigned = assign_cells(boxes_xyxy, height, width)
        inside = assigned >= 0
        targets[i][inside] = functional.one_hot(
            torch.tensor(labels[i] or [0])[assigned[inside]], logits.shape[-1]
        ).float()
        gt_boxes.append(boxes_xyxy[assigned[inside]])
        masks.append(inside)
    mask = torch.stack(masks)
    predicted = to_boxes(edges, height, width)[mask]
    cells = max(1, int(mask.sum()))
    class_loss = sigmoid_focal_loss(logits, targets, reduction="sum") / cells
    return class_loss + generalized_box_iou_loss(predicted, torch.cat(gt_boxes), reduction="sum") / cells


def to_boxes(edges: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(..., 4) xyxy in pixels of the input, from (..., 4) distances to the edges."""
    centers = cell_centers(height, width)
    return torch.cat([centers - edges[..., :2], centers + edges[..., 2:]], -1)


@torch.no_grad()
def predict(model: Detector, record: Record, data: Path, classes: list[str]) -> dict:
    """A prediction with the fields that the scorer reads: at most MAX_BOXES boxes in pixels of the original image."""
    image = input_image(record, data)
    logits, edges = model(to_pixels([image]))
    scores, class_indices = logits[0].sigmoid().flatten(0, 1).max(-1)
    boxes_xyxy = to_boxes(edges[0], *logits.shape[1:3]).flatten(0, 1)
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


def train(data: Path, classes: list[str], steps: int, seed: int) -> Detector:
    """Train on the dataset's training split: AdamW, linear warm-up and decay, random horizontal flips."""
    torch.manual_seed(seed)
    draw, model = random.Random(seed), Detector(len(classes))
    records, order = read_records(data, "train"), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1) * (1 - step / steps)
    )
    for _ in trange(steps, desc="training", unit="step", disable=None):
        images, boxes, labels = [], [], []
        for _ in range(BATCH):
            order = order or draw.sample(range(len(records)), len(records))
            record = records[order.pop()]
            image = input_image(record, data)
            pair = image, input_boxes(record, image)
            image, boxes_xyxy = flipped(*pair) if draw.random() < 0.5 else pair
            images.append(image)
            boxes.append(boxes_xyxy)
            labels.append([classes.index(name) for name in answer_objects(record)[1]])
        loss_of(model, images, boxes, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=path_argument, help="prepared dataset with train, validation and test")
    parser.add_argument("--steps", type=int, default=1000, help=f"steps of {BATCH} images each (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    classes = read_info(args.data)["classes"]
    splits = {split: [as_asked(r) for r in read_records(args.data, split)] for split in ("validation", "test")}
    if not all(splits.values()):
        raise UserError(f"{args.data}: needs images in validation, which chooses the threshold, and in test")
    began = time.monotonic()
    model = train(args.data, classes, args.steps, args.seed)
    seconds = time.monotonic() - began
    predictions = {
        split: [predict(model, record, args.data, classes) for record in records] for split, records in splits.items()
    }

    def f1_on_validation(threshold: float) -> float:
        kept = [above(prediction, threshold) for prediction in predictions["validation"]]
        return total_rates(match_images(splits["validation"], kept))["f1"] or 0.0

    best = max(THRESHOLDS, key=f1_on_validation)
    kept = score(splits["test"], [above(prediction, best) for prediction in predictions["test"]], classes)["matching"]
    ranked = score(splits["test"], predictions["test"], classes)
    result = {key: kept[key] for key in ("f1", "precision", "recall", "mean_iou_gt")}
    result |= {key: ranked[key] for key in ("AP", "AP50")} | {"threshold": round(float(best), 2)}
    print(json.dumps(result | {"steps": args.steps, "seed": args.seed, "training_seconds": round(seconds)}))


if __name__ == "__main__":
    main()
