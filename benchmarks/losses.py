"""What losses on boxes add to the time of a step: python -m benchmarks.losses [--turns 5] [--batches 4] [--data-dir DIR]

The recipe tiny_nutrition_qlora on its own data, seed 0: forward and backward pass of the same batches with the plain loss, with
each teacher-forced term and all of them, and with sampled answers. They take turns, so that whatever else runs on the machine
slows all alike; without a GPU the times are the process's own CPU seconds. The medians of the turns count.
"""

import argparse
import itertools
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plan import IOU, NOISE, POLICY, STOPPING, W1
from benchmarks.process import at_least_one
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import command
from boxtune.data.records import read_info
from boxtune.models.checkpoint import quiet_libraries
from boxtune.models.loading import load_config, load_processor
from boxtune.training.recipe import load_recipe
from boxtune.training.trainer import DetectionTrainer
from train_sft import (
    build_model,
    build_trainer,
    build_variation,
    choose_losses,
    fit_lengths,
    make_grounding,
    prepare_data,
    read_examples,
)

RECIPE = "tiny_nutrition_qlora"
WAYS = {
    "plain": (),
    "IoU term: GIoU": IOU,
    "IoU term: W1": W1,
    "FP and FN": STOPPING,
    "GIoU, FP and FN": (*IOU, *STOPPING),
    "noise objects, end tokens at 0.5": NOISE,
    "four sampled answers to each question": (*IOU, *STOPPING, *POLICY),
}


def make_trainer(data_dir: str, options: tuple[str, ...]) -> DetectionTrainer:
    """The recipe's trainer before its first step."""
    recipe = load_recipe(["--config", RECIPE, "--data_dir", data_dir, "--eval_images", "0", *options])
    name, revision = recipe.model.model_name_or_path, recipe.model.model_revision
    config = load_config(name, revision)
    folder = prepare_data(recipe)
    splits = read_examples(folder, recipe.options.object_order)
    processor = load_processor(name, revision, recipe.options.min_pixels, recipe.options.max_pixels)
    grounding = make_grounding(recipe, config, processor, splits, read_info(folder)["classes"])
    collator = DetectionCollator(processor, grounding, folder, build_variation(recipe, grounding, splits["train"]))
    splits = fit_lengths(recipe, splits, collator)
    model, losses = build_model(recipe), choose_losses(recipe)
    trainer = build_trainer(recipe, model, processor, collator, splits, *losses)
    trainer.model.train()
    return trainer


def seconds(trainer: DetectionTrainer, batches: list[dict]) -> float:
    """Of forward and backward passes over the batches."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    for batch in batches:
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        trainer.model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=at_least_one, default=5)
    parser.add_argument("--batches", type=at_least_one, default=4)
    parser.add_argument("--data-dir", default="data/nutrition", help="prepared data (default %(default)s)")
    args = parser.parse_args(argv)
    quiet_libraries()
    trainers = {name: make_trainer(args.data_dir, options) for name, options in WAYS.items()}
    batches = {
        name: list(itertools.islice(trainer.get_train_dataloader(), args.batches)) for name, trainer in trainers.items()
    }
    for name, trainer in trainers.items():
        seconds(trainer, batches[name][:1])  # what is only done once
    turns = [{name: seconds(trainer, batches[name]) for name, trainer in trainers.items()} for _ in range(args.turns)]
    table = Table(
        "", "seconds a step", "of a plain step", title=f"{RECIPE}, {args.turns} turns of {args.batches} steps"
    )
    for name in WAYS:
        mean = statistics.median(turn[name] for turn in turns) / args.batches
        ratio = statistics.median(turn[name] / turn["plain"] for turn in turns)
        table.add_row(name, f"{mean:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
