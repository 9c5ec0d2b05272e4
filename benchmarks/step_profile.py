"""Where the time of a training step goes: python -m benchmarks.step_profile [DATA] [--steps 8] [--recipe NAME] [--key value …]

Trains a recipe (tiny_nutrition_qlora) on the prepared dataset DATA (data/nutrition) and prints the share of each part: reading
and collating the batch, forward and backward passes, the optimizer; and of the passes, the share of each kind of operation by its
own time. On a CPU, in one thread. The first step is left out, because it sets up memory and kernels.
"""

import argparse
import re
import time
from collections import Counter
from itertools import islice

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.losses import make_trainer
from benchmarks.process import at_least_one
from boxtune.common.errors import command
from boxtune.models.libraries import quiet_libraries
from boxtune.training.trainer import DetectionTrainer

# {kind: names of the operations that PyTorch reports}. The first kind that fits counts.
KINDS = {
    "NF4: expanding weights": r"bitsandbytes::dequantize.*|dequantize_4bit",
    "NF4: products with 4-bit weights": r"bitsandbytes::.*",
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|matmul|linear|mkldnn.*)|mkl::.*",
    "attention": r"aten::.*(attention|softmax).*",
    "convolution": r"aten::.*conv.*",
    "normalization and activation": r"aten::(rsqrt|pow|mean|native_layer_norm.*|gelu.*|silu.*|sigmoid|var.*|layer_norm)",
    "copies and rearranging": r"aten::(copy_|cat|index.*|gather|scatter.*|select.*|slice.*|clone|stack|embedding.*|fill_|zero_)",
    "sums and products by element": r"aten::(mul|add|sub|div|neg|sum|exp|log.*|where|masked.*|max|min|clamp.*|_foreach.*)_?",
}
OTHERS = "everything else, such as autograd and Python"


def kind_of(operation: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, operation)), OTHERS)


def measure(trainer: DetectionTrainer, steps: int) -> tuple[Counter[str], Counter[str]]:
    """(seconds of the parts of `steps` steps, microseconds of the kinds of operations in their passes)."""
    trainer.create_optimizer()
    parts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    batches = iter(trainer.get_train_dataloader())
    for number in range(steps + 1):
        began = time.perf_counter()
        (batch,) = islice(batches, 1)
        collated = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
        passed = time.perf_counter()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        stepped = time.perf_counter()
        if number:
            parts.update(batch=collated - began, passes=passed - collated, optimizer=stepped - passed)
            for event in seen.key_averages():
                kinds[kind_of(event.key)] += event.self_cpu_time_total
    return parts, kinds


def print_shares(title: str, found: Counter[str]) -> None:
    table = Table(title, "share")
    for name, amount in found.most_common():
        table.add_row(name, f"{amount / found.total():.1%}")
    Console().print(table)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="data/nutrition", metavar="DATA")
    parser.add_argument("--steps", type=at_least_one, default=8)
    parser.add_argument("--recipe", default="tiny_nutrition_qlora")
    args, options = parser.parse_known_args(argv)
    quiet_libraries()
    torch.set_num_threads(1)
    options = [*options, "--eval_strategy", "no", "--dataloader_num_workers", "0"]
    trainer = make_trainer(args.data, tuple(options), args.recipe)
    parts, kinds = measure(trainer, args.steps)
    print_shares(f"{args.recipe}, {parts.total() / args.steps:.2f} s for a step", parts)
    print_shares("of the passes", kinds)


if __name__ == "__main__":
    main()
