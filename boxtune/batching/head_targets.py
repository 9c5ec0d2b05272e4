"""What the detection head learns from a batch, as tensors: where the questions are, and the boxes they ask for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from boxtune.answers.noise import true_objects
from boxtune.batching.encoder import IGNORE_INDEX, EncodedRecord
from boxtune.data.questions import answer_category, as_asked, asked_classes
from boxtune.data.records import Record, answer_objects

# Coordinates are stored as integers, in millionths of the image: DeepSpeed casts floating-point inputs to the model's dtype.
UNITS = 1_000_000


def collate_head_targets(
    records: Sequence[Record], encoded: Sequence[EncodedRecord], classes: Sequence[str], noise_label: str
) -> dict[str, Tensor]:
    """The targets of N examples with B boxes in all and C `classes`.

    question_end (N,): position of the first token of the response. asks_for_boxes (N,): examples whose first question is
    answered by text only teach the head nothing. asked (N, C): the classes that the first question asks for.
    boxes (B, 4): cxcywh in UNITS. label (B,): position in `classes`. row (B,): example. Ignored and noise objects are left out.
    """
    boxes, labels, rows, asked = [], [], [], []
    for row, record in enumerate(records):
        names = asked_classes(record, classes)
        asked.append([name in names for name in classes])
        boxes_xyxy, categories = answer_objects(true_objects(as_asked(record), noise_label))
        for (x0, y0, x1, y1), category in zip(boxes_xyxy, categories, strict=True):
            width, height = record["width"] / UNITS, record["height"] / UNITS
            middle_and_size = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
            boxes.append([round(value) for value in middle_and_size])
            labels.append(classes.index(category))
            rows.append(row)
    return {
        "question_end": torch.tensor([_response_start(example) for example in encoded]),
        "asks_for_boxes": torch.tensor([answer_category(r["messages"][1]["content"])[0] for r in records]),
        "asked": torch.tensor(asked, dtype=torch.bool).reshape(len(records), len(classes)),
        "boxes": torch.tensor(boxes, dtype=torch.long).reshape(-1, 4),
        "label": torch.tensor(labels, dtype=torch.long),
        "row": torch.tensor(rows, dtype=torch.long),
    }


def _response_start(example: EncodedRecord) -> int:
    return next(i for i, label in enumerate(example.labels) if label != IGNORE_INDEX)
