"""Added time per step of the losses on boxes: python -m benchmarks.losses [--turns 5] [--batches 4] [--data-dir DIR]

Uses the recipe tiny_nutrition_qlora on its own data, seed 0. Measures forward and backward passes over the same batches with
the plain loss, with each teacher-forced term, with all of them, and with sampled responses. They take turns, so that other
programs on the machine slow down all of them. Without a GPU, times are the process's own CPU seconds. The result is the
median over the turns.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plan import IOU, NOISE, POLICY, STOPPING, W1
from benchmarks.process import at_least_one
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import command
from boxtune.data.dataset import read_info
from boxtune.models.config import load_config
from boxtune.models.libraries import quiet_libraries
from boxtune.models.processors import load_processor
from boxtune.training import setup, setup_examples, setup_losses
from boxtune.training.examples import fit_lengths, read_examples
from boxtune.training.recipe import load_recipe
from boxtune.training.trainer import DetectionTrainer
from data_prep.prepare_once import prepare_once

RECIPE = "tiny_nutrition_qlora"
WAYS = {
    "plain": (),
    "IoU term: GIoU": IOU,
    "IoU term: W1": W1,
    "FP and FN": STOPPING,
    "GIoU, FP and FN": (*IOU, *STOPPING),
    "noise objects, end tokens at 0.5": NOISE,
    "four sampled responses per question": (*IOU, *STOPPING, *POLICY),
}


def make_trainer(data_dir: str, options: tuple[str, ...], recipe_name: str = RECIPE) -> DetectionTrainer:
    """The recipe's trainer, before its first step."""
    recipe = load_recipe(["--config", recipe_name, "--data_dir", data_dir, "--eval_images", "0", *options])
    name, revision = recipe.model.model_name_or_path, recipe.model.model_revision
    config = load_config(name, revision)
    folder, values = Path(data_dir), recipe.options
    prepare_once(folder, values.data_format, values.data_source, values.data_args, print)
    classes, splits = read_info(folder)["classes"], read_examples(folder, values.object_order, values.tiles)
    processor = load_processor(name, revision, values.min_pixels, values.max_pixels)
    encoder = setup_examples.make_encoder(recipe, config, processor, classes)
    variation = setup_examples.make_variation(
        recipe, splits["train"], classes, processor.image_processor.size["longest_edge"]
    )
    examples = fit_lengths(recipe, splits, encoder)
    grounding = setup_examples.make_grounding(
        recipe, encoder, splits["train"], classes, variation, examples.max_new_tokens
    )
    collator = DetectionCollator(processor, grounding, folder, variation)
    arguments = setup.trainer_arguments(recipe, examples.splits, grounding.max_pixels, [])
    model, losses = setup.build_model(recipe, config), setup_losses.choose_losses(recipe)
    trainer = setup.build_trainer(
        recipe, arguments, model, collator, examples, None, *losses, setup_losses.choose_rates(recipe)
    )
    trainer.model.train()
    return trainer


def seconds(trainer: DetectionTrainer, batches: list[dict]) -> float:
    """Seconds for one forward and backward pass over each batch."""
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
    parser.add_argument("--data-dir", default="data/nutrition", help="prepared dataset (default %(default)s)")
    args = parser.parse_args(argv)
    quiet_libraries()
    trainers = {name: make_trainer(args.data_dir, options) for name, options in WAYS.items()}
    batches = {
        name: list(itertools.islice(trainer.get_train_dataloader(), args.batches)) for name, trainer in trainers.items()
    }
    for name, trainer in trainers.items():
        seconds(trainer, batches[name][:1])  # warm-up
    turns = [{name: seconds(trainer, batches[name]) for name, trainer in trainers.items()} for _ in range(args.turns)]
    title = f"{RECIPE}, {args.turns} turns of {args.batches} steps"
    table = Table("", "seconds per step", "ratio to plain", title=title)
    for name in WAYS:
        mean = statistics.median(turn[name] for turn in turns) / args.batches
        ratio = statistics.median(turn[name] / turn["plain"] for turn in turns)
        table.add_row(name, f"{mean:.2f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
