"""What it saves to flush denormal numbers to zero in training on a CPU: python -m benchmarks.denormals [--turns 5] [--batches 3]

Forward and backward passes of tiny_nutrition_qlora over the same batches, with and without, in turns. Prints the CPU seconds
of a step and the median ratio.
"""

import argparse
import itertools
import statistics

import torch

from benchmarks.losses import make_trainer, seconds
from benchmarks.process import at_least_one
from boxtune.common.errors import command
from boxtune.models.libraries import quiet_libraries


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=at_least_one, default=5)
    parser.add_argument("--batches", type=at_least_one, default=3)
    parser.add_argument("--data-dir", default="data/nutrition", help="prepared dataset (default %(default)s)")
    args = parser.parse_args(argv)
    quiet_libraries()
    torch.set_num_threads(1)  # the setting is one of each thread
    trainer = make_trainer(args.data_dir, ())
    batches = list(itertools.islice(trainer.get_train_dataloader(), args.batches))
    seconds(trainer, batches[:1])  # warm-up
    kept, flushed = [], []
    for _ in range(args.turns):
        for times, flush in ((kept, False), (flushed, True)):
            torch.set_flush_denormal(flush)
            times.append(seconds(trainer, batches) / len(batches))
    ratio = statistics.median(after / before for before, after in zip(kept, flushed, strict=True))
    print(
        f"seconds per step: {statistics.median(kept):.2f} as they are, {statistics.median(flushed):.2f} flushed to zero"
    )
    print(f"ratio: {ratio:.2f} (median of {args.turns} turns)")


if __name__ == "__main__":
    main()
