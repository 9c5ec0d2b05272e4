"""Padded against packed batches: python -m benchmarks.packing [--spreads 1,4,16] [--examples 16] [--turns 3] [--seed 0]

Uses the embedded model, in float32, with a frozen vision tower and all other weights trained, and generated images whose areas
differ by up to the factor SPREAD: 1 means that all are equal, 16 that the largest is 16 times the smallest, with areas in between
equally likely on a logarithmic scale. The number of objects grows with the area. Measures forward and backward passes over the
same batches, padded and packed. The two take turns, so that other programs on the machine slow down both. Without a GPU, times
are the process's own CPU seconds. The ratio is the median over the turns. `collator: auto` follows this measurement
(boxtune/training/batches.py).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from benchmarks.gray_images import gray_records
from benchmarks.process import at_least_one
from boxtune.answers.conversation import SYSTEM_PROMPT, format_sentence
from boxtune.answers.grounding import Grounding
from boxtune.batching.batch_plan import Limit, padding_share, plan, random_batches
from boxtune.batching.collator import DetectionCollator
from boxtune.common.errors import command
from boxtune.models.config import codec_for
from boxtune.models.libraries import quiet_libraries
from boxtune.models.loading import load_model
from boxtune.models.processors import load_processor
from boxtune.training.machine import flush_denormals

MODEL = Path(__file__).parents[1] / "assets" / "tiny_qwen3_vl"
LARGEST = 50_176  # pixels, as in the recipe tiny_nutrition_qlora: 49 image tokens
PIXELS_PER_OBJECT = 5_000
BATCH_SIZE = 8
MODEL_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "position_ids", "pixel_values", "image_grid_thw")


def make_rows(folder: Path, spread: float, examples: int, seed: int) -> list[dict]:
    """Training rows of gray images."""
    records = gray_records(folder, spread, examples, seed, LARGEST, PIXELS_PER_OBJECT)
    return [{"record": json.dumps(record), "varied": True} for record in records]


def make_collator(config) -> DetectionCollator:
    processor = load_processor(str(MODEL), max_pixels=LARGEST)
    codec, size = codec_for(config, "boxes"), processor.image_processor.size
    budget = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    wording = {"system_prompt": SYSTEM_PROMPT, "format_sentence": format_sentence(codec)}
    grounding = Grounding(codec=codec.name, **wording, **budget, max_new_tokens=1, base_model=str(MODEL))
    return DetectionCollator(processor, grounding, Path())


def seconds(model, batches: list[dict]) -> float:
    """Seconds of one forward and backward pass over each batch."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:].to(model.device)).backward()
        model.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spreads", default="1,4,16", help="comma-separated factors (default %(default)s)")
    parser.add_argument("--examples", type=at_least_one, default=16)
    parser.add_argument("--turns", type=at_least_one, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    quiet_libraries()
    flush_denormals()  # as training does
    model = load_model(str(MODEL), dtype=torch.float32)
    if torch.cuda.is_available():
        model.cuda()
    model.model.visual.requires_grad_(False)
    padded = make_collator(model.config)
    packed = padded.for_losses(teacher_forced=False, sampled=False, packs=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}; {args}", flush=True)
    for spread in map(float, args.spreads.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows = make_rows(Path(folder) / "images", spread, args.examples, args.seed)
            by_chance = random_batches(len(rows), BATCH_SIZE, args.seed)
            of_padded, of_packed = ([c([rows[i] for i in batch]) for batch in by_chance] for c in (padded, packed))
            lengths = padded(rows)["attention_mask"].sum(1).tolist()
        seconds(model, [of_padded[0], of_packed[0]])  # warm-up
        ratio = statistics.median(seconds(model, of_packed) / seconds(model, of_padded) for _ in range(args.turns))
        by_length = padding_share(plan(lengths, Limit(examples=BATCH_SIZE), args.seed, epoch=0), lengths)
        print(
            f"spread {spread:g}: padding {padding_share(by_chance, lengths):.1%}, by length {by_length:.1%}, "
            f"time of packed ÷ padded {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
