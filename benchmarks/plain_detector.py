"""A plain convolutional detector of 2.8 million parameters, trained on a prepared dataset from random weights.

    python -m benchmarks.plain_detector data/nutrition [--images-shown 16000] [--seed 0]

It is a reference for the recipes of the embedded model: the same images at the same size, and the same scorer. Objects that only
this detector finds are visible in the pixels, so the images are not what limits the embedded model.

The network is residual with one output grid of eight pixels per cell (see benchmarks.dense_detection for its losses). The score
threshold is the best one on validation.
"""

import argparse
import json
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from benchmarks.dense_detection import above, best_threshold, predict, train
from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument
from boxtune.data.dataset import read_info, read_records
from boxtune.data.questions import as_asked
from boxtune.metrics.scoring import score

PEAK_RATE = 2e-3


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
    cell = 8

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

    def forward(self, images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.eighth(self.stem(to_pixels(images)))
        middle = self.sixteenth(fine)
        coarse = self.thirty_second(middle)
        fine, middle, coarse = (layer(x) for layer, x in zip(self.laterals, (fine, middle, coarse), strict=True))
        middle = middle + functional.interpolate(coarse, scale_factor=2)
        features = self.head(fine + functional.interpolate(middle, scale_factor=2))
        edges = functional.softplus(self.edges(features)) * 2 * self.cell
        return self.classes(features).permute(0, 2, 3, 1), edges.permute(0, 2, 3, 1)


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) from -1 to 1, of images of the same size."""
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 127.5 - 1
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=path_argument, help="prepared dataset with train, validation and test")
    parser.add_argument("--images-shown", type=int, default=16000, help="counts repetitions (default 16000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.images_shown < 1:
        raise UserError(f"--images-shown {args.images_shown}: must be at least 1")
    classes = read_info(args.data)["classes"]
    validation, test = ([as_asked(r) for r in read_records(args.data, split)] for split in ("validation", "test"))
    if not validation or not test:
        raise UserError(f"{args.data}: needs images in validation, which chooses the threshold, and in test")
    torch.manual_seed(args.seed)
    network = Detector(len(classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    began = time.monotonic()
    train(network, [optimizer], read_records(args.data, "train"), args.data, classes, args.images_shown, args.seed)
    seconds = time.monotonic() - began
    threshold = best_threshold(validation, [predict(network, record, args.data, classes) for record in validation])
    ranked = [predict(network, record, args.data, classes) for record in test]
    rates = score(test, [above(prediction, threshold) for prediction in ranked], classes)["matching"]
    metrics = score(test, ranked, classes)
    result = {key: rates[key] for key in ("f1", "precision", "recall", "mean_iou_gt")}
    result |= {key: metrics[key] for key in ("AP", "AP50")} | {"threshold": round(threshold, 2)}
    result |= {"images_shown": args.images_shown, "seed": args.seed, "training_seconds": round(seconds)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
