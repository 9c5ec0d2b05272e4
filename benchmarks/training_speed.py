"""Training speed against plain TRL: python -m benchmarks.training_speed [--spread 16] [--examples 32] [--turns 3] [--seed 0]

Trains the embedded model, without NF4, on generated images whose areas differ by up to the factor SPREAD, in four ways:
trl.SFTTrainer with its own collator, the same with boxtune's collator, boxtune's trainer with padded batches, and with packed
batches of as many tokens. All use the same LoRA and the same examples. Measures collation, forward and backward passes. The ways
take turns, so that other programs on the machine slow down all of them. Without a GPU, times are the process's own CPU seconds.
Prints the supervised tokens and images in a second, the median ratio to the first way, and the mean loss of each. TRL's
collator also supervises the newline that the chat template puts after the end of the turn; boxtune does not, because generation
ends before it. That label is removed here, so that all four have the same supervised tokens, and so the same loss.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from benchmarks.gray_images import CLASSES, gray_records
from benchmarks.losses import make_trainer
from benchmarks.process import at_least_one
from boxtune.answers.conversation import render
from boxtune.batching.batch_plan import Limit, plan, random_batches
from boxtune.batching.encoder import IGNORE_INDEX, expected_input_size
from boxtune.batching.lengths import as_dataset
from boxtune.common.errors import command
from boxtune.data.dataset import write_dataset
from boxtune.data.images import load_image
from boxtune.data.records import Record
from boxtune.models.config import load_config
from boxtune.models.libraries import quiet_libraries
from boxtune.training.recipe import load_recipe
from boxtune.training.setup import build_model, make_lora_config
from boxtune.training.trainer import DetectionTrainer

LARGEST = 401_408  # pixels: 392 image tokens
PIXELS_PER_OBJECT = 40_000
BATCH_SIZE = 8
OPTIONS = ("--max_pixels", str(LARGEST), "--max_length", "2048", "--load_in_4bit", "false", "--eval_strategy", "no")
# Keys of boxtune's batches that plain TRL does not know.
OWN_KEYS = ("ids",)


@dataclass(frozen=True)
class Way:
    """collate: rows' positions → batch. flushes: whether denormal numbers are flushed to zero, as boxtune's training does."""

    trainer: Trainer
    collate: Callable[[list[int]], dict[str, Any]]
    batches: list[list[int]]
    flushes: bool


def trl_rows(ours: DetectionTrainer, records: list[Record]) -> list[dict[str, Any]]:
    """The conversations in the form that TRL asks for: prompt, completion, images."""
    encoder = ours.data_collator.encoder
    rows = []
    for record in records:
        size = expected_input_size(encoder.processor, (record["height"], record["width"]))
        *prompt, answer = render(record, encoder.codec, size, encoder.system_prompt, encoder.format_sentence)[0]
        rows.append({"prompt": prompt, "completion": [answer], "images": [load_image(Path(record["image"]))]})
    return rows


def trl_trainer(ours: DetectionTrainer, rows: list[dict[str, Any]], data_dir: str) -> SFTTrainer:
    """TRL's own trainer for the same model and adapters."""
    recipe = load_recipe(["--config", "tiny_nutrition_qlora", "--data_dir", data_dir, *OPTIONS])
    model = build_model(recipe, load_config(recipe.model.model_name_or_path, None))
    arguments = SFTConfig(
        output_dir="runs/training_speed",
        max_length=None,
        per_device_train_batch_size=BATCH_SIZE,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows[:BATCH_SIZE]),
        processing_class=ours.processing_class,
        peft_config=make_lora_config(recipe, model),
    )
    trainer.model.train()
    return trainer


def without_newline(batch: dict[str, Any]) -> dict[str, Any]:
    """TRL's batch without the label of the last supervised token of each example, the newline after the end of the turn."""
    labels = batch["labels"]
    for row in labels:
        row[(row != IGNORE_INDEX).nonzero()[-1]] = IGNORE_INDEX
    return batch


def make_ways(records: list[Record], data_dir: str, seed: int) -> dict[str, Way]:
    ours = make_trainer(data_dir, OPTIONS)
    rows = list(as_dataset(records, Path(), varied=True))
    plain_rows = trl_rows(ours, records)
    plain = trl_trainer(ours, plain_rows, data_dir)
    padded = ours.data_collator
    packed = padded.for_losses(teacher_forced=False, sampled=False, packs=True)
    lengths = padded(rows)["attention_mask"].sum(1).tolist()
    by_chance = random_batches(len(rows), BATCH_SIZE, seed)
    budget = plan(lengths, Limit(tokens=sum(lengths) // len(by_chance), packed=True), seed, epoch=0)

    def trl_batch(batch: list[int]) -> dict[str, Any]:
        return without_newline(plain.data_collator([copy.deepcopy(plain_rows[i]) for i in batch]))

    def own_batch(batch: list[int]) -> dict[str, Any]:
        collated = padded([rows[i] for i in batch])
        return {key: value for key, value in collated.items() if key not in OWN_KEYS}

    return {
        "trl.SFTTrainer": Way(plain, trl_batch, by_chance, False),
        "trl.SFTTrainer, boxtune's collator": Way(plain, own_batch, by_chance, False),
        "boxtune, padded": Way(ours, lambda batch: padded([rows[i] for i in batch]), by_chance, True),
        "boxtune, packed": Way(ours, lambda batch: packed([rows[i] for i in batch]), budget, True),
    }


def measure(way: Way) -> tuple[float, int, float]:
    """(seconds, supervised tokens, sum of the losses of all supervised tokens) of all batches."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    torch.set_flush_denormal(way.flushes)
    tokens, total = 0, 0.0
    began = clock()
    for chosen in way.batches:
        batch = way.collate(chosen)
        count = int((batch["labels"] != IGNORE_INDEX).sum())
        device = way.trainer.accelerator.device
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        loss = way.trainer.compute_loss(way.trainer.model, batch)
        loss.backward()
        way.trainer.model.zero_grad()
        tokens, total = tokens + count, total + loss.item() * count
    return clock() - began, tokens, total


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spread", type=float, default=16)
    parser.add_argument("--examples", type=at_least_one, default=32)
    parser.add_argument("--turns", type=at_least_one, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(1)  # denormal numbers are flushed by each thread for itself
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = gray_records(folder / "images", args.spread, args.examples, args.seed, LARGEST, PIXELS_PER_OBJECT)
        splits = {"train": records}
        write_dataset(
            folder / "data", name="speed", source_format="generated", classes=CLASSES, splits=splits, problems=[]
        )
        ways = make_ways(records, str(folder / "data"), args.seed)
        turns = [{title: measure(way) for title, way in ways.items()} for _ in range(args.turns + 1)]
    turns = turns[1:]  # the first was a warm-up
    table = Table("", "supervised tokens/s", "images/s", "times as fast", "loss", title=f"{args}")
    first = next(iter(ways))
    for title in ways:
        seconds = statistics.median(turn[title][0] for turn in turns)
        _, tokens, total = turns[0][title]
        ratio = statistics.median(turn[first][0] / turn[title][0] for turn in turns)
        table.add_row(
            title, f"{tokens / seconds:.0f}", f"{args.examples / seconds:.1f}", f"{ratio:.2f}", f"{total / tokens:.3f}"
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
