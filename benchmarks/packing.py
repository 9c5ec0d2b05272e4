"""Padded against packed batches: python -m benchmarks.packing [--spreads 1,2,4,16] [--examples 32] [--turns 3] [--seed 0]

Trains the embedded model, without NF4, on generated images whose areas differ by up to the factor SPREAD: 1 means that all are
equal, 16 that the largest is 16 times the smallest, with areas in between equally likely on a logarithmic scale. The number of
objects grows with the area. Measures forward and backward passes over the same examples in each way. The ways take turns, so that
other programs on the machine slow down all of them. Without a GPU, times are the process's own CPU seconds. Ratios are medians
over the turns. `collator: auto` follows this measurement (boxtune/training/batches.py).
"""

import argparse
import math
import platform
import random
import statistics
import tempfile
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.losses import make_trainer, seconds
from benchmarks.process import at_least_one
from boxtune.batching.batch_plan import Limit, padding_share, plan, random_batches
from boxtune.batching.lengths import as_dataset
from boxtune.common.errors import command
from boxtune.data.dataset import write_dataset
from boxtune.data.questions import question
from boxtune.data.records import Record
from boxtune.models.libraries import quiet_libraries
from boxtune.training.trainer import DetectionTrainer

LARGEST = 401_408  # pixels: 392 image tokens
PIXELS_PER_OBJECT = 40_000
BATCH_SIZE = 8
CLASSES = ["box"]
OPTIONS = ("--max_pixels", str(LARGEST), "--max_length", "2048", "--load_in_4bit", "false", "--eval_strategy", "no")
WAYS = ("padded", "padded, by length", "packed", "packed, token budget")


def make_records(folder: Path, spread: float, examples: int, seed: int) -> list[Record]:
    """Grey images with a row of boxes."""
    draw = random.Random(f"{seed} {spread}")
    folder.mkdir()
    records: list[Record] = []
    for i in range(examples):
        area, aspect = LARGEST / spread ** draw.random(), 1.5 if spread == 1 else draw.uniform(0.67, 1.5)
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        path = folder / f"{i}.png"
        Image.new("RGB", (width, height), "grey").save(path)
        boxes = [[8 * k, 8 * k, 8 * k + 32, 8 * k + 32] for k in range(round(area / PIXELS_PER_OBJECT))]
        objects = {"bbox": boxes, "category": CLASSES * len(boxes), "ignore": [False] * len(boxes)}
        messages = [{"role": "user", "content": question(CLASSES)}, {"role": "assistant", "content": "<boxes>"}]
        size = {"width": width, "height": height}
        records.append({"id": str(i), "image": str(path), **size, "objects": objects, "messages": messages})
    return records


def measure(trainer: DetectionTrainer, records: list[Record], turns: int, seed: int) -> dict[str, tuple[float, float]]:
    """{way: (padding share, median of its time ÷ that of padded batches)}."""
    rows = list(as_dataset(records, Path(), varied=True))
    padded = trainer.data_collator
    packed = padded.for_losses(teacher_forced=False, sampled=False, packs=True)
    lengths = padded(rows)["attention_mask"].sum(1).tolist()
    by_chance = random_batches(len(rows), BATCH_SIZE, seed)
    budget = Limit(tokens=sum(lengths) // len(by_chance), packed=True)
    plans = {"padded": by_chance, "packed": by_chance}
    plans["padded, by length"] = plan(lengths, Limit(examples=BATCH_SIZE), seed, epoch=0)
    plans["packed, token budget"] = plan(lengths, budget, seed, epoch=0)
    collators = {way: padded if way.startswith("padded") else packed for way in WAYS}
    batches = {way: [collators[way]([rows[i] for i in batch]) for batch in plans[way]] for way in WAYS}
    seconds(trainer, [batches[way][0] for way in WAYS])  # warm-up
    times = [{way: seconds(trainer, batches[way]) for way in WAYS} for _ in range(turns)]
    shares = {way: padding_share(plans[way], lengths) if way.startswith("padded") else 0.0 for way in WAYS}
    return {way: (shares[way], statistics.median(turn[way] / turn["padded"] for turn in times)) for way in WAYS}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spreads", default="1,2,4,16", help="factors, separated by commas (default %(default)s)")
    parser.add_argument("--examples", type=at_least_one, default=32)
    parser.add_argument("--turns", type=at_least_one, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    quiet_libraries()
    table = Table("spread of areas", "padding", "by length", *(f"{way} ÷ padded" for way in WAYS[1:]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = {
            spread: make_records(folder / f"{spread:g}", spread, args.examples, args.seed)
            for spread in map(float, args.spreads.split(","))
        }
        splits = {"train": next(iter(sets.values()))}
        write_dataset(
            folder / "data", name="packing", source_format="generated", classes=CLASSES, splits=splits, problems=[]
        )
        trainer = make_trainer(str(folder / "data"), OPTIONS)
        for spread, records in sets.items():
            found = measure(trainer, records, args.turns, args.seed)
            ratios = [f"{found[way][1]:.2f}" for way in WAYS[1:]]
            table.add_row(f"{spread:g}", *(f"{found[way][0]:.1%}" for way in WAYS[:2]), *ratios)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    Console(width=130).print(table, f"{args}; {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
