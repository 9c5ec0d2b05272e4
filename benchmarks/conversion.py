"""Speed and memory of converting a large dataset: python -m benchmarks.conversion [--num-images 20000] [--sources loop coco yolo]

Draws that many JPEGs of 640 × 480 with 0 to 15 boxes each (seed 0), as COCO, which is a single document, and as YOLO, which
has one label file per image. Converts all of them and a tenth of them, with one worker and with one per core, each in its own
process, and prints a table. The last column is the growth of peak memory from the tenth to the whole, per image. "loop" is what
many projects write for COCO: pycocotools reads the file, PIL decodes each image, and a line with its boxes is written. Needs
about 60 KB of disk per image, which is freed at the end.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.process import at_least_one, timed
from boxtune.common.errors import command
from boxtune.data.boxes import box_xywh_to_xyxy, box_xyxy_to_cxcywh

WIDTH, HEIGHT, CLASSES = 640, 480, 10
SHARES = {"tenth": 10, "whole": 1}
SOURCES = ("loop", "coco", "yolo")
# The arguments are the COCO file, the folder of its images, and the file to write.
LOOP = """
import json, sys
from pathlib import Path
from PIL import Image
from pycocotools.coco import COCO

coco, folder = COCO(sys.argv[1]), Path(sys.argv[2])
with open(sys.argv[3], "w") as lines:
    for image in coco.loadImgs(coco.getImgIds()):
        Image.open(folder / image["file_name"]).load()
        objects = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        line = {"image": image["file_name"], "boxes": [[o["bbox"], o["category_id"]] for o in objects]}
        lines.write(json.dumps(line) + "\\n")
"""


def draw_source(folder: Path, count: int) -> None:
    """Write `count` images of smooth noise with a label file next to each, and NAME.json and NAME.yaml for each of SHARES."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in tqdm(range(count), desc="drawing", unit="image"):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        name = f"{number:06d}.jpg"
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(folder / name, quality=85)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        lines = []
        for _ in range(rng.integers(0, 16)):
            x, y = rng.uniform(0, WIDTH - 64), rng.uniform(0, HEIGHT - 64)
            box_xywh = [round(float(value), 2) for value in (x, y, *rng.uniform(8, 64, 2))]
            category = int(rng.integers(CLASSES)) + 1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "bbox": box_xywh, "category_id": category}
            )
            box_cxcywh = box_xyxy_to_cxcywh(box_xywh_to_xyxy(box_xywh))[0] / (WIDTH, HEIGHT, WIDTH, HEIGHT)
            lines.append(" ".join([str(category - 1), *(f"{value:.6f}" for value in box_cxcywh)]))
        (folder / name).with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
    categories = [{"id": i + 1, "name": f"thing {i}"} for i in range(CLASSES)]
    for name, share in SHARES.items():
        kept = images[: count // share]
        ids = {image["id"] for image in kept}
        rows = [row for row in annotations if row["image_id"] in ids]
        text = json.dumps({"images": kept, "annotations": rows, "categories": categories})
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        (folder / f"{name}.txt").write_text("\n".join(image["file_name"] for image in kept), encoding="utf-8")
        names = ", ".join(category["name"] for category in categories)
        (folder / f"{name}.yaml").write_text(f"train: {name}.txt\nnames: [{names}]\n", encoding="utf-8")


def ways(folder: Path) -> Iterator[tuple[str, int, Callable[[str], list]]]:
    """(title, number of workers, the words of a command that converts the part of this name) for every row of the table."""
    loop = folder / "loop.py"
    loop.write_text(LOOP, encoding="utf-8")
    yield "loop", 1, lambda name: [loop, folder / f"{name}.json", folder, folder / f"{name}.lines"]
    for source_format, ending in (("coco", "json"), ("yolo", "yaml")):
        for workers in sorted({1, os.cpu_count() or 1}):

            def convert(name: str, source_format=source_format, ending=ending, workers=workers) -> list:
                out = folder / f"out {source_format} {workers} {name}"
                source = folder / f"{name}.{ending}"
                return ["-m", "data_prep", source_format, source, "--out", out, "--workers", workers]

            yield source_format, workers, convert


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--num-images", type=at_least_one, default=20_000, metavar="N", help="number of images to generate"
    )
    parser.add_argument(
        "--pictures", dest="num_images", type=at_least_one, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="rows of the table")
    args = parser.parse_args()
    table = Table("source", "workers", "images", "seconds", "images/s", "peak MiB", "bytes per image")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # In its own process: the peak measured for a command is at least that of the process that starts it.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(draw_source, folder, args.num_images).result()
        for title, workers, words_of in ways(folder):
            if title not in args.sources:
                continue
            peaks = []
            for name, share in SHARES.items():
                seconds, peak = timed([sys.executable, *words_of(name)], folder / "log")
                count = args.num_images // share
                peaks.append((count, peak))
                (fewer, low), (more, high) = peaks[0], peaks[-1]
                grown = f"{(high - low) * 2**20 / (more - fewer):,.0f}" if more > fewer else ""
                row = [title, workers, count, f"{seconds:.1f}", f"{count / seconds:.0f}", peak, grown]
                table.add_row(*map(str, row))
    Console().print(table)


if __name__ == "__main__":
    main()
