"""Token lengths of all records, known before training starts, and the dataset that the trainer reads."""

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from tqdm import tqdm

from boxtune.answers.noise import with_longest_noise
from boxtune.batching.encoder import Encoder, expected_input_size
from boxtune.data.questions import is_standard
from boxtune.data.records import Record, image_path


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens in one example: all, those of the image, and those of the responses.

    widened: boxes that rounding collapsed and the codec widened.
    """

    id: str
    total: int
    image: int
    answer: int
    widened: int

    @property
    def question(self) -> int:
        return self.total - self.image - self.answer


def measure(records: list[Record], encoder: Encoder, noise_objects: float = 0.0) -> list[Lengths]:
    """The lengths of every record, without opening an image, with the most noise objects that the record may get."""
    lengths = []
    for record in tqdm(records, desc="token lengths", unit="record", delay=2, leave=False):
        longest = with_longest_noise(record, noise_objects) if is_standard(record) else record
        input_size = expected_input_size(encoder.processor, (record["height"], record["width"]))
        encoded = encoder.encode(longest, input_size)
        lengths.append(
            Lengths(record["id"], len(encoded.input_ids), encoded.image_tokens, encoded.answer_tokens, encoded.widened)
        )
    return lengths


def overlong(lengths: list[Lengths], max_length: int | None) -> list[Lengths]:
    """The examples that exceed `max_length`, the longest first; none if it is None."""
    longer = [] if max_length is None else [entry for entry in lengths if entry.total > max_length]
    return sorted(longer, key=lambda entry: -entry.total)


def describe_overlong(entries: list[Lengths]) -> list[str]:
    """One line per example, for messages."""
    return [
        f"{entry.id}: {entry.total} tokens (image {entry.image}, question {entry.question}, answer {entry.answer})"
        for entry in entries
    ]


def overlong_remedy(entries: list[Lengths], noise_objects: float) -> str:
    """What to do about examples that exceed max_length, without a full stop."""
    fewer_tokens = f"max_pixels or noise_objects ({noise_objects})" if noise_objects else "max_pixels"
    return f"raise max_length to {max(entry.total for entry in entries)}, lower {fewer_tokens}, or set `overlong: drop`"


def answer_budget(lengths: list[Lengths]) -> int:
    """`max_new_tokens` for evaluation: the longest target response and a quarter more, plus 32."""
    return max((entry.answer for entry in lengths), default=0) * 5 // 4 + 32


def as_dataset(records: list[Record], data_dir: Path, varied: bool = False) -> Dataset:
    """One row per record, for DetectionCollator.

    The record is stored as JSON text, so that Arrow does not change its structure. TRL recognizes vision data by the column
    `image`. `varied` makes the collator vary the example in each epoch.
    """
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
