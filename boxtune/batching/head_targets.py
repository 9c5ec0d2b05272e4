"""What the detection head learns from a batch, as tensors: where the questions are, and the boxes they ask for."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from boxtune.answers.noise import true_objects
from boxtune.batching.encoder import IGNORE_INDEX, EncodedRecord
from boxtune.data.questions import answer_category, as_asked, asked_classes
from boxtune.data.records import Record, object_columns, shown_records

# Coordinates are stored as integers, in millionths of the image: DeepSpeed casts floating-point inputs to the model's dtype.
UNITS = 1_000_000


def collate_head_targets(
    records: Sequence[Record],
    encoded: Sequence[EncodedRecord],
    classes: Sequence[str],
    noise_label: str,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Tensor]:
    """The targets of N examples with B boxes in all and C `classes`.

    question_start, question_end (N,): where the example's own prompt begins, behind the answers of its teachers if it has
    any, and where its response does. image (N,): its own image among those of the batch. asks_for_boxes (N,): examples whose
    first question is answered by text only teach the head nothing. asked (N, C): the classes that the first question asks
    for. boxes (B, 4): cxcywh in UNITS. label (B,): position in `classes`. row (B,): example. captions (B, L): tokens of the
    object's caption, or of its class where it has none, and the end token, padded with IGNORE_INDEX. ignored (I, 4),
    ignored_label, ignored_row (I,): the same for ignored objects. Noise objects are left out.
    """
    boxes, labels, rows, asked, captions = [], [], [], [], []
    ignored, ignored_labels, ignored_rows = [], [], []
    for row, record in enumerate(records):
        names = asked_classes(record, classes)
        asked.append([name in names for name in classes])
        objects = object_columns(true_objects(as_asked(record), noise_label)["objects"])
        width, height = record["width"] / UNITS, record["height"] / UNITS
        for i, (x0, y0, x1, y1) in enumerate(objects["bbox"]):
            category = objects["category"][i]
            middle_and_size = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
            box = [round(value) for value in middle_and_size]
            if objects["ignore"][i]:
                ignored.append(box)
                ignored_labels.append(classes.index(category))
                ignored_rows.append(row)
                continue
            boxes.append(box)
            labels.append(classes.index(category))
            rows.append(row)
            written = objects["caption"][i] if "caption" in objects else None
            tokens = tokenizer(written or category, add_special_tokens=False)["input_ids"]
            captions.append(torch.tensor([*tokens, tokenizer.eos_token_id]))
    padded = pad_sequence(captions, batch_first=True, padding_value=IGNORE_INDEX) if captions else torch.zeros(0, 1)
    return {
        "question_start": torch.tensor(
            [example.student_prompt[0] if example.teacher_spans else 0 for example in encoded]
        ),
        "question_end": torch.tensor([example.student_prompt[1] for example in encoded]),
        "image": torch.tensor([len(shown_records(record)) for record in records]).cumsum(0) - 1,
        "asks_for_boxes": torch.tensor([answer_category(r["messages"][1]["content"])[0] for r in records]),
        "asked": torch.tensor(asked, dtype=torch.bool).reshape(len(records), len(classes)),
        "boxes": torch.tensor(boxes, dtype=torch.long).reshape(-1, 4),
        "label": torch.tensor(labels, dtype=torch.long),
        "captions": padded.long(),
        "row": torch.tensor(rows, dtype=torch.long),
        "ignored": torch.tensor(ignored, dtype=torch.long).reshape(-1, 4),
        "ignored_label": torch.tensor(ignored_labels, dtype=torch.long),
        "ignored_row": torch.tensor(ignored_rows, dtype=torch.long),
    }
