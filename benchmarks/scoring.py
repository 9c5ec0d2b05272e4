"""Speed and memory of scoring a large split: python -m benchmarks.scoring [--num-images 5000]

Simulates that many images of 1000 × 1000 with 0 to 30 boxes of 20 classes, one in fifty ignored, and predictions that miss,
duplicate, shift and relabel some of them (seed 0; 5,000 images: 74,669 ground-truth boxes, 80,626 predictions). Prints the
seconds of `score`, the seconds of each of its parts alone, and the peak memory of the process.
"""

import argparse
import resource
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.process import at_least_one
from boxtune.common.errors import command
from boxtune.metrics.average_precision import all_classes, constant_score_ap
from boxtune.metrics.bootstrap import bootstrap
from boxtune.metrics.coco_matching import CocoBoxes
from boxtune.metrics.error_types import confusion, count_error_types
from boxtune.metrics.matching import match_images
from boxtune.metrics.scoring import score
from boxtune.metrics.sizes import size_scores

CLASSES = [f"thing {i}" for i in range(20)]
SIDE = 1000


def make_case(count: int) -> tuple[list[dict], list[dict]]:
    """(records, predictions) of `count` simulated images."""
    rng = np.random.default_rng(0)
    records, predictions = [], []
    for number in range(count):
        objects = int(rng.integers(0, 31))
        corner, side = rng.uniform(0, 500, (objects, 2)), np.exp(rng.uniform(np.log(8), np.log(250), (objects, 2)))
        label = rng.integers(0, len(CLASSES), objects)
        found = np.repeat(np.arange(objects), rng.choice([0, 1, 2], objects, p=[0.15, 0.72, 0.13]))
        moved = np.concatenate([corner, corner + side], axis=1)[found]
        moved += rng.normal(0, 0.08, moved.shape) * np.tile(side[found], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        renamed = np.where(rng.random(len(moved)) < 0.93, label[found], rng.integers(0, len(CLASSES), len(moved)))
        alarms = int(rng.integers(0, 4))
        alarm = rng.uniform(0, 500, (alarms, 2))
        boxes = np.concatenate([moved, np.concatenate([alarm, alarm + rng.uniform(8, 200, (alarms, 2))], axis=1)])
        labels = np.concatenate([renamed, rng.integers(0, len(CLASSES), alarms)])
        common = {"id": f"{number:06d}", "image": f"{number:06d}.jpg", "width": SIDE, "height": SIDE}
        ground_truth = {
            "bbox": np.concatenate([corner, corner + side], axis=1).tolist(),
            "category": [CLASSES[i] for i in label],
            "ignore": (rng.random(objects) < 0.02).tolist(),
        }
        predicted = {
            "bbox": boxes.tolist(),
            "category": [CLASSES[i] for i in labels],
            "score": rng.random(len(boxes)).tolist(),
        }
        records.append(common | {"objects": ground_truth, "messages": []})
        predictions.append(common | {"objects": predicted, "problems": []})
    return records, predictions


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--num-images", type=at_least_one, default=5_000, metavar="N", help="number of images to simulate"
    )
    parser.add_argument(
        "--pictures", dest="num_images", type=at_least_one, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    records, predictions = make_case(parser.parse_args().num_images)
    gt_count, predicted_count = (sum(len(row["objects"]["bbox"]) for row in rows) for rows in (records, predictions))
    table = Table(f"{len(records)} images, {gt_count} ground-truth boxes, {predicted_count} predictions", "seconds")

    def timed(name: str, part):
        began = time.perf_counter()
        result = part()
        table.add_row(name, f"{time.perf_counter() - began:.2f}")
        return result

    timed("score", lambda: score(records, predictions, CLASSES))
    classes = all_classes(records, CLASSES)
    images = timed("matching of all images", lambda: match_images(records, predictions))
    boxes = timed("COCO IoU of all boxes", lambda: CocoBoxes(records, predictions, classes))
    matches = timed("matches at ten IoU thresholds", lambda: boxes.match(boxes.scores))
    timed("average precision", matches.accumulate)
    timed("AP with equal scores, 20 orders", lambda: constant_score_ap(boxes, 0))
    timed("intervals, 300 draws", lambda: bootstrap(matches, images, 0))
    timed("error types", lambda: count_error_types(records, predictions, images, classes, 0.5))
    timed("class confusion", lambda: confusion(records, predictions, images, classes, 0.5))
    timed("sizes", lambda: size_scores(records, predictions, images))
    table.add_row("peak memory, MiB", str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
    Console().print(table)


if __name__ == "__main__":
    main()
