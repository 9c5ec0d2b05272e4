"""Memory and time of a short training from train.jsonl and from shards: python -m benchmarks.streaming [--num-images 20000]

Draws that many JPEGs of 96 × 96 with eight boxes each (seed 0), and prepares all of them and a tenth of them. Trains eight steps
of eight examples of tiny_nutrition_qlora from each, with train.jsonl and with shards, each in its own process, and prints a
table. "seconds" include the start; with train.jsonl, also measuring the length of every example. The last column is the growth of
peak memory from the tenth to the whole, per image. Needs about 12 KB of disk per image, which is freed at the end.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.process import at_least_one, timed
from boxtune.common.errors import command
from boxtune.data.dataset import write_dataset
from boxtune.data.questions import turns_for
from boxtune.data.records import Record
from boxtune.data.shards import write_shards

ROOT = Path(__file__).resolve().parent.parent
SIDE, BOXES = 96, 8
CLASSES = ["square", "circle"]
STEPS, BATCH_SIZE = 8, 8


def draw(folder: Path, count: int) -> list[Record]:
    """`count` images of smooth noise with random boxes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    records: list[Record] = []
    for number in tqdm(range(count), desc="drawing", unit="image"):
        path = folder / f"{number:06d}.jpg"
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE)).save(path, quality=80)
        corners = rng.integers(0, SIDE - 32, (BOXES, 2))
        boxes_xyxy = np.hstack([corners, corners + rng.integers(8, 32, (BOXES, 2))]).tolist()
        labels = [CLASSES[i] for i in rng.integers(0, 2, BOXES)]
        records.append(
            {
                "id": path.stem,
                "image": str(path),
                "width": SIDE,
                "height": SIDE,
                "objects": {"bbox": boxes_xyxy, "category": labels, "ignore": [False] * BOXES},
                "messages": turns_for(CLASSES),
            }
        )
    return records


def train(data: Path, out: Path) -> tuple[float, int]:
    """(seconds, peak resident MiB) of a short training on `data`."""
    words = ["--config", "tiny_nutrition_qlora", "--data_dir", data, "--output_dir", out]
    words += ["--max_steps", STEPS, "--per_device_train_batch_size", BATCH_SIZE, "--gradient_accumulation_steps", 1]
    words += ["--max_length", 512, "--save_strategy", "no"]
    return timed([sys.executable, "train_sft.py", *words], out.with_suffix(".log"), 1, ROOT)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--num-images", type=at_least_one, default=20_000, metavar="N", help="number of images to generate"
    )
    args = parser.parse_args()
    table = Table("training data", "images", "seconds", "peak MiB", "bytes per image")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = draw(folder / "images", args.num_images)
        peaks = {}
        for share in (10, 1):
            count = args.num_images // share
            whole, sharded = folder / f"whole-{count}", folder / f"sharded-{count}"
            splits = {"train": records[:count]}
            write_dataset(whole, name="noise", source_format="noise", classes=CLASSES, splits=splits, problems=[])
            began = time.monotonic()
            write_shards(whole, sharded, images_per_shard=1000, seed=0)
            print(f"{count} images written into shards in {time.monotonic() - began:.1f} s")
            for kind, data in {"train.jsonl": whole, "shards": sharded}.items():
                seconds, peak = train(data, folder / f"run-{data.name}")
                growth = ""
                if share == 1:
                    growth = f"{(peak - peaks[kind]) * 2**20 / (count - args.num_images // 10):.0f}"
                peaks[kind] = peak
                table.add_row(kind, str(count), f"{seconds:.1f}", str(peak), growth)
    Console().print(table)


if __name__ == "__main__":
    main()
