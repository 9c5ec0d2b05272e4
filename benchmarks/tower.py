"""The yardstick for the embedded model's vision tower: how well it detects under a dense loss, without a language model.

    python -m benchmarks.tower data/nutrition [--model assets/tiny_qwen3_vl] [--images-shown 6400] [--seed 0]
    python -m benchmarks.tower data/nutrition --random [--hidden 192 --vision-layers 7 ...] [--no-neighbors]

All weights of the tower and a linear layer on its output are trained on the training split, with the losses of
benchmarks.dense_detection, and scored on validation. The last 200 training images choose the score threshold instead of being
trained on. Two designs are compared by two runs with the same number of images shown.

Computes in bfloat16 where the CPU has AMX or the like (--float32 turns that off).
"""

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration

from assets.batched_tower import add_batched_tower
from assets.build_tiny_model import build_model, build_processor, build_tokenizer
from assets.convolutional_start import start_as_convolution
from assets.muon import Muon
from benchmarks.dense_detection import above, best_threshold, predict, train
from boxtune.common.errors import UserError, command
from boxtune.common.files import path_argument
from boxtune.data.dataset import read_info, read_records
from boxtune.data.questions import as_asked
from boxtune.metrics.scoring import score
from boxtune.models.patch_embedding import use_matrix_products

MODEL = Path("assets/tiny_qwen3_vl")
CHOOSING = 200  # images
MATRIX_RATE, PEAK_RATE = 2e-3, 1e-3  # of Muon and AdamW


class TowerDetector(nn.Module):
    """A vision tower and a linear layer: a class and a box for each token that a language model would see."""

    def __init__(self, tower: nn.Module, classes: int, dtype: torch.dtype):
        super().__init__()
        config = tower.config
        self.tower, self.dtype = tower, dtype
        self.merge = config.spatial_merge_size
        self.cell = config.patch_size * self.merge
        self.image_processor = build_processor(
            "qwen3_vl", build_tokenizer(), patch_size=config.patch_size
        ).image_processor
        self.head = nn.Linear(config.out_hidden_size, classes + 4)
        nn.init.constant_(self.head.bias[:classes], -4.0)  # initially nothing is an object, as focal loss requires

    def forward(self, images: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.image_processor(images, do_resize=False, return_tensors="pt")
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            tokens = self.tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        height, width = (inputs["image_grid_thw"][0, 1:] // self.merge).tolist()
        found = self.head(tokens.float()).view(len(images), height, width, -1)
        return found[..., :-4], functional.softplus(found[..., -4:]) * 2 * self.cell


def load_tower(args: argparse.Namespace) -> nn.Module:
    """The tower of --model, or one with random weights, in float32."""
    if args.random:
        sizes = {"hidden": args.hidden, "vision_layers": args.vision_layers, "patch_size": args.patch_size}
        model = build_model("qwen3_vl", build_tokenizer(), layers=1, seed=args.seed, **sizes)
        if not args.no_neighbors:
            start_as_convolution(model.model.visual)
    else:
        model = Qwen3VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    model.train()
    add_batched_tower(model)
    use_matrix_products(model)
    return model.model.visual


def make_optimizers(network: TowerDetector) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the tower's layers, AdamW for the rest, as in pretraining."""
    matrices = [parameter for parameter in network.tower.blocks.parameters() if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    return [
        Muon(matrices, lr=MATRIX_RATE, weight_decay=0.02, dtype=network.dtype),
        torch.optim.AdamW(others, lr=PEAK_RATE, weight_decay=0.02),
    ]


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=path_argument, help="prepared dataset with train and validation")
    parser.add_argument("--model", type=path_argument, default=MODEL, help="a Qwen3-VL checkpoint")
    parser.add_argument("--random", action="store_true", help="random weights of the sizes below instead of --model")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--vision-layers", type=int, default=7)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--no-neighbors", action="store_true", help="do not start the attention as a convolution")
    parser.add_argument("--images-shown", type=int, default=6400, help="counts repetitions (default 6400)")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.images_shown < 1:
        raise UserError(f"--images-shown {args.images_shown}: must be at least 1")
    classes, records = read_info(args.data)["classes"], read_records(args.data, "train")
    validation = [as_asked(record) for record in read_records(args.data, "validation")]
    if len(records) <= CHOOSING or not validation:
        raise UserError(f"{args.data}: needs more than {CHOOSING} images in train, and images in validation")
    torch.manual_seed(args.seed)
    network = TowerDetector(load_tower(args), len(classes), torch.float32 if args.float32 else torch.bfloat16)
    began = time.monotonic()
    train(network, make_optimizers(network), records[:-CHOOSING], args.data, classes, args.images_shown, args.seed)
    seconds = time.monotonic() - began
    choosing = [as_asked(record) for record in records[-CHOOSING:]]
    threshold = best_threshold(choosing, [predict(network, record, args.data, classes) for record in choosing])
    kept = [above(predict(network, record, args.data, classes), threshold) for record in validation]
    found = score(validation, kept, classes)["matching"]
    result = {key: round(found[key] or 0.0, 4) for key in ("f1", "precision", "recall", "mean_iou_gt")}
    result |= {"threshold": round(threshold, 2), "images_shown": args.images_shown, "seed": args.seed}
    print(json.dumps(result | {"training_seconds": round(seconds)}))


if __name__ == "__main__":
    main()
