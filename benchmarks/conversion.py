"""How fast, and in how much memory, a large data set is converted: python -m benchmarks.conversion [--pictures 20000]

Draws that many JPEGs of 640 × 480 with a COCO file (seed 0), converts them and a tenth of them with one worker and with one
for each core, each in a process of its own, and prints a table. Needs some 30 KB of disk a picture, given back at the end.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.process import timed
from boxtune.errors import command

WIDTH, HEIGHT, CLASSES = 640, 480, 10


def draw_source(folder: Path, count: int) -> None:
    """`count` pictures of smooth noise with 0 to 15 boxes each, and instances.json."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in tqdm(range(count), desc="drawing", unit="picture"):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        name = f"{number:06d}.jpg"
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / name, quality=85)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for _ in range(rng.integers(0, 16)):
            x, y = rng.uniform(0, WIDTH - 64), rng.uniform(0, HEIGHT - 64)
            box_xywh = [round(float(value), 2) for value in (x, y, *rng.uniform(8, 64, 2))]
            category = int(rng.integers(CLASSES)) + 1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "bbox": box_xywh, "category_id": category}
            )
    categories = [{"id": i + 1, "name": f"thing {i}"} for i in range(CLASSES)]
    for share, name in ((10, "tenth.json"), (1, "whole.json")):
        kept = images[: count // share]
        ids = {image["id"] for image in kept}
        rows = [row for row in annotations if row["image_id"] in ids]
        text = json.dumps({"images": kept, "annotations": rows, "categories": categories})
        (folder / name).write_text(text, encoding="utf-8")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000, metavar="N")
    args = parser.parse_args()
    table = Table("pictures", "workers", "seconds", "pictures/s", "peak MiB")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        draw_source(folder, args.pictures)
        for source, count in (("tenth.json", args.pictures // 10), ("whole.json", args.pictures)):
            for workers in sorted({1, os.cpu_count()}):
                out = folder / f"out {count} {workers}"
                words = ["-m", "data_prep", "coco", folder / source, "--out", out, "--workers", workers]
                seconds, peak = timed([sys.executable, *words], folder / "log")
                table.add_row(str(count), str(workers), f"{seconds:.1f}", f"{count / seconds:.0f}", str(peak))
    Console().print(table)


if __name__ == "__main__":
    main()
