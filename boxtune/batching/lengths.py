"""Records → the dataset that the trainer reads, with every length known before the first step."""

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm

from boxtune.answers.noise import with_longest_noise
from boxtune.batching.collator import DetectionCollator, EncodedRecord, expected_input_size
from boxtune.data.questions import is_standard
from boxtune.data.records import Record, image_path


@dataclass(frozen=True)
class Lengths:
    """Tokens of one example, found from the picture's size alone."""

    id: str
    total: int
    image: int
    answer: int
    widened: int

    @property
    def question(self) -> int:
        return self.total - self.image - self.answer


def measure(records: list[Record], collator: DetectionCollator, noise_objects: float = 0.0) -> list[Lengths]:
    """Token counts of every record, without opening a picture; with the most noise objects that it may get."""
    lengths = []
    for record in tqdm(records, desc="token lengths", unit="record", delay=2, leave=False):
        encoded: EncodedRecord = collator.encode(
            with_longest_noise(record, noise_objects) if is_standard(record) else record,
            expected_input_size(collator.processor, (record["height"], record["width"])),
        )
        lengths.append(
            Lengths(record["id"], len(encoded.input_ids), encoded.image_tokens, encoded.answer_tokens, encoded.widened)
        )
    return lengths


def overlong(lengths: list[Lengths], max_length: int | None) -> list[Lengths]:
    """The examples that exceed `max_length`; none where it is None."""
    return [] if max_length is None else [entry for entry in lengths if entry.total > max_length]


def describe_overlong(entries: list[Lengths]) -> list[str]:
    return [
        f"{entry.id}: {entry.total} tokens (image {entry.image}, question {entry.question}, answer {entry.answer})"
        for entry in entries
    ]


def answer_budget(lengths: list[Lengths]) -> int:
    """`max_new_tokens` for evaluation: a quarter more than the longest training answer, and 32 for good measure."""
    return max((entry.answer for entry in lengths), default=0) * 5 // 4 + 32


def as_dataset(records: list[Record], data_dir: Path, varied: bool = False) -> Dataset:
    """One row a record. The record travels as JSON, so that Arrow cannot reshape it; `image` tells TRL that this is
    vision data, and `varied` tells the collator to show each epoch another variation of it."""
    return Dataset.from_list(
        [
            {
                "image": str(image_path(record, data_dir)),
                "record": json.dumps(record, ensure_ascii=False),
                "varied": varied,
            }
            for record in records
        ]
    )
