"""What a detector scores that never looks: the one box, the same for every picture, that suits the training split best.

    python -m benchmarks.constant_box data/nutrition [--split test]

A data set on which this figure is high rewards guessing; a trained model has to beat it by far.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from boxtune.common.errors import UserError, command
from boxtune.data.boxes import box_iou, match_greedy
from boxtune.data.records import Record, answer_objects, read_records

IOU_THRESHOLD = 0.5
MOST_CANDIDATES = 2000
METRICS = ("mean_iou_gt", "f1")


def relative_boxes(record: Record) -> np.ndarray:
    """(N, 4) xyxy of one record as shares of the picture; IoU is the same as in pixels."""
    width, height = record["width"], record["height"]
    return np.asarray(answer_objects(record)[0], dtype=float).reshape(-1, 4) / [width, height, width, height]


def best_constant_box(records: list[Record]) -> dict[str, list[float]]:
    """{metric: [x0, y0, x1, y1] in shares of the picture}: the constant answer that maximises each metric on `records`.

    Tries the boxes of the data themselves and then refines the best by small steps. Raises UserError without any box.
    """
    truth = [boxes for boxes in map(relative_boxes, records) if len(boxes)]
    if not truth:
        raise UserError("There is no box to choose from: every picture of the split is empty.")
    every_box = np.concatenate(truth)
    starts = np.cumsum([0, *(len(boxes) for boxes in truth[:-1])])

    def scores(candidates: np.ndarray) -> dict[str, np.ndarray]:
        """{metric: (C,)}. One answer a picture is matched to the truth box that it overlaps most."""
        best = np.maximum.reduceat(box_iou(candidates, every_box), starts, axis=1)  # (C, pictures with truth)
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
            winner = scores(moves)[metric].argmax()  # the first of equals, so staying put wins a tie
            best, step = moves[winner], (step / 2 if winner == 0 else step)
        best_boxes[metric] = best.tolist()
    return best_boxes


_SHIFTS = np.array([[1, 0, 1, 0], [0, 1, 0, 1]], dtype=float)  # the whole box to the right, and down


def score_constant_box(records: list[Record], box: list[float]) -> dict[str, float]:
    """Both metrics of one answer (xyxy, shares of the picture) that is given for every picture."""
    total_iou, hits, truths = 0.0, 0, 0
    for record in records:
        boxes = relative_boxes(record)
        iou = box_iou([box], boxes)
        total_iou += sum(iou[pair] for pair in match_greedy(iou))
        hits += len(match_greedy(iou, IOU_THRESHOLD))
        truths += len(boxes)
    return {"mean_iou_gt": total_iou / max(truths, 1), "f1": 2 * hits / max(len(records) + truths, 1)}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared data set; the box is chosen on its training split")
    parser.add_argument("--split", default="test", help="split to score on (default test)")
    args = parser.parse_args()
    chosen = best_constant_box(read_records(args.data, "train"))
    records = read_records(args.data, args.split)
    for metric, box in chosen.items():
        scores = score_constant_box(records, box)
        print(json.dumps({"best_for": metric, "box": np.round(box, 3).tolist(), "split": args.split, **scores}))


if __name__ == "__main__":
    main()
