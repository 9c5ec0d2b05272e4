"""The score of a detector that never looks at the image: the single box that fits the training split best, for every image.

    python -m benchmarks.constant_box data/nutrition [--split test]

A dataset on which this score is high rewards guessing. A trained model has to exceed it by far.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from boxtune.common.errors import UserError, command
from boxtune.data.boxes import box_iou, match_greedy
from boxtune.data.dataset import read_records
from boxtune.data.records import Record, answer_objects

IOU_THRESHOLD = 0.5
MOST_CANDIDATES = 2000
METRICS = ("mean_iou_gt", "f1")


def relative_boxes(record: Record) -> np.ndarray:
    """(N, 4) xyxy of one record as fractions of the image; IoU is the same as in pixels."""
    width, height = record["width"], record["height"]
    return np.asarray(answer_objects(record)[0], dtype=float).reshape(-1, 4) / [width, height, width, height]


def best_constant_box(records: list[Record]) -> dict[str, list[float]]:
    """{metric: [x0, y0, x1, y1] as fractions of the image}: the constant box that maximizes each metric on `records`.

    Tries the boxes of the data themselves, then refines the best one in small steps. Raises UserError if there is no box.
    """
    gt_boxes = [boxes for boxes in map(relative_boxes, records) if len(boxes)]
    if not gt_boxes:
        raise UserError("There is no box to choose from: every image of the split is empty.")
    every_box = np.concatenate(gt_boxes)
    starts = np.cumsum([0, *(len(boxes) for boxes in gt_boxes[:-1])])

    def scores(candidates: np.ndarray) -> dict[str, np.ndarray]:
        """{metric: (C,)}. The one box per image is matched to the ground-truth box with the highest IoU."""
        best = np.maximum.reduceat(box_iou(candidates, every_box), starts, axis=1)  # (C, images with ground truth)
        hits = (best >= IOU_THRESHOLD).sum(axis=1)
        return {"mean_iou_gt": best.sum(axis=1) / len(every_box), "f1": 2 * hits / (len(records) + len(every_box))}

    candidates = np.concatenate([every_box[:: len(every_box) // MOST_CANDIDATES + 1], [np.median(every_box, axis=0)]])
    first_scores, best_boxes = scores(candidates), {}
    for metric in METRICS:
        best = candidates[first_scores[metric].argmax()]
        step = 0.1
        while step > 0.004:
            moves = best + step * np.concatenate([[np.zeros(4)], np.eye(4), -np.eye(4), _SHIFTS, -_SHIFTS])
            moves = moves.clip(0, 1)
            moves = moves[(moves[:, 2] > moves[:, 0]) & (moves[:, 3] > moves[:, 1])]
            winner = scores(moves)[metric].argmax()  # argmax takes the first, so staying put wins a tie
            best, step = moves[winner], (step / 2 if winner == 0 else step)
        best_boxes[metric] = best.tolist()
    return best_boxes


_SHIFTS = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=float)  # the whole box to the right, and down


def score_constant_box(records: list[Record], box: list[float]) -> dict[str, float]:
    """Both metrics if `box` (xyxy, fractions of the image) is predicted for every image."""
    total_iou, hits, gt_count = 0.0, 0, 0
    for record in records:
        boxes = relative_boxes(record)
        iou = box_iou([box], boxes)
        total_iou += sum(iou[pair] for pair in match_greedy(iou))
        hits += len(match_greedy(iou, IOU_THRESHOLD))
        gt_count += len(boxes)
    return {"mean_iou_gt": total_iou / max(gt_count, 1), "f1": 2 * hits / max(len(records) + gt_count, 1)}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared dataset; the box is chosen on its training split")
    parser.add_argument("--split", default="test", help="split to score (default test)")
    args = parser.parse_args()
    chosen = best_constant_box(read_records(args.data, "train"))
    records = read_records(args.data, args.split)
    for metric, box in chosen.items():
        scores = score_constant_box(records, box)
        print(json.dumps({"best_for": metric, "box": np.round(box, 3).tolist(), "split": args.split, **scores}))


if __name__ == "__main__":
    main()
