"""Token lengths of all records, known before training starts, and the dataset that the trainer reads."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm import tqdm

from boxtune.answers.noise import with_longest_noise
from boxtune.batching.encoder import Encoder, expected_input_size
from boxtune.data.questions import is_standard, join_names
from boxtune.data.records import Record, image_path


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens in one example: all, those of the image, and those of the responses.

    widened: boxes that rounding collapsed and the codec widened.
    system: those of the system turn. teachers: the most that the teachers before the example may have.
    """

    id: str
    total: int
    image: int
    answer: int
    widened: int
    system: int = 0
    teachers: int = 0

    @property
    def question(self) -> int:
        return self.total - self.image - self.answer - self.teachers


def measure(records: list[Record], encoder: Encoder, noise_objects: float = 0.0) -> list[Lengths]:
    """The lengths of every record, without opening an image, with the most noise objects that the record may get."""
    lengths = []
    for record in tqdm(records, desc="token lengths", unit="record", delay=2, leave=False):
        longest = with_longest_noise(record, noise_objects) if is_standard(record) else record
        input_size = expected_input_size(encoder.processor, (record["height"], record["width"]))
        encoded = encoder.encode(longest, input_size)
        total, system = len(encoded.input_ids), encoded.student_prompt[0]
        counts = (encoded.image_tokens, encoded.answer_tokens, encoded.widened)
        lengths.append(Lengths(record["id"], total, *counts, system=system))
    return lengths


def with_teachers(lengths: list[Lengths], samples: int) -> list[Lengths]:
    """The lengths of examples that may get the `samples` longest others as teachers. `lengths`: those of all, without teachers.

    Which teachers an example gets changes with the epoch, so this is the most that it may need.
    """
    by_length = sorted(lengths, key=lambda entry: entry.system - entry.total)
    longer = []
    for entry in lengths:
        others = [other for other in by_length[: samples + 1] if other.id != entry.id][:samples]
        teachers = sum(other.total - other.system for other in others)  # the system turn is there once
        longer.append(replace(entry, total=entry.total + teachers, teachers=teachers))
    return longer


def overlong(lengths: list[Lengths], max_length: int | None) -> list[Lengths]:
    """The examples that exceed `max_length`, the longest first; none if it is None."""
    longer = [] if max_length is None else [entry for entry in lengths if entry.total > max_length]
    return sorted(longer, key=lambda entry: -entry.total)


def describe_overlong(entries: list[Lengths]) -> list[str]:
    """One line per example, for messages."""
    return [
        f"{entry.id}: {entry.total} tokens (image {entry.image}, question {entry.question}, answer {entry.answer}"
        + (f", teachers {entry.teachers})" if entry.teachers else ")")
        for entry in entries
    ]


def overlong_remedy(entries: list[Lengths], noise_objects: float, can_drop: bool = True) -> str:
    """What to do about examples that exceed max_length, without a full stop. can_drop: whether they can be left out."""
    lower = ["max_pixels"]
    lower += [f"noise_objects ({noise_objects})"] if noise_objects else []
    lower += ["num_teacher_samples"] if any(entry.teachers for entry in entries) else []
    longest = max(entry.total for entry in entries)
    if not can_drop:
        return f"raise max_length to {longest}, or lower {join_names(lower, 'or')}"
    return f"raise max_length to {longest}, lower {join_names(lower, 'or')}, or set `overlong: drop`"


def answer_budget(lengths: list[Lengths]) -> int:
    """`max_new_tokens` for evaluation: the longest target response and a quarter more, plus 32."""
    return max((entry.answer for entry in lengths), default=0) * 5 // 4 + 32


def as_row(record: Record, data_dir: Path, varied: bool) -> dict[str, Any]:
    """A record as DetectionCollator reads it.

    The record is stored as JSON text, so that Arrow does not change its structure. TRL recognizes vision data by the column
    `image`. `varied` makes the collator vary the example in each epoch.
    """
    return {
        "image": str(image_path(record, data_dir)),
        "record": json.dumps(record, ensure_ascii=False),
        "varied": varied,
    }


def as_dataset(records: list[Record], data_dir: Path, varied: bool = False) -> Dataset:
    """One row (`as_row`) per record."""
    return Dataset.from_list([as_row(record, data_dir, varied) for record in records])
