"""Records and their images → padded or packed batches.

Coordinates refer to the size that the image processor really produced (image_grid_thw × patch size).
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from transformers import ProcessorMixin
from transformers.image_utils import SizeDict

from boxtune.answers.example_images import save_examples
from boxtune.answers.grounding import Grounding
from boxtune.answers.noise import true_objects
from boxtune.batching.box_targets import collate_targets
from boxtune.batching.encoder import IGNORE_INDEX, Encoder, expected_input_size, grid_input_size, token_side
from boxtune.batching.head_targets import collate_head_targets
from boxtune.batching.packed import pack
from boxtune.batching.teachers import Teachers
from boxtune.batching.variation import Variation
from boxtune.common.errors import UserError
from boxtune.data.images import load_image
from boxtune.data.questions import as_asked
from boxtune.data.records import Record, image_path, shown_records
from boxtune.data.tiles import cut_image, whole_of

# ({pixel_values, image_grid_thw}, (height, width) of each resized image)
ProcessedImages = tuple[dict[str, torch.Tensor], list[tuple[int, int]]]


class DetectionCollator:
    """Turns rows {"record": JSON text} into a padded batch: input_ids, attention_mask, labels, pixel_values, image_grid_thw.

    Rows with {"varied": True}, which are those of training, are changed by `variation` and get examples from `teachers`.
    `open_image` returns a record's whole image; without it, the image is read from the file that the record names.
    `for_losses` returns a collator that adds the targets of the box losses to its batches.

    A record with teachers (`taught_by`) has several images: theirs, then its own. With `teachers`, batches have
    `teacher_tokens` (N, T), true at the supervised tokens of teachers' responses.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        grounding: Grounding,
        data_dir: Path,
        variation: Variation | None = None,
        open_image: Callable[[Record], Image.Image] | None = None,
        teachers: Teachers | None = None,
    ):
        self.processor = processor
        self.grounding = grounding
        self.data_dir = Path(data_dir)
        self.variation = variation
        self.open_image = open_image
        self.teachers = teachers
        self.encoder = self._make_encoder()
        self._require_known_template()
        self.codec = self.encoder.codec
        self.tokenizer = self.encoder.tokenizer
        self.image_token_id = self.encoder.image_token_id
        self.adds_targets = False
        self.adds_questions = False
        self.adds_head_targets = False
        self.locates_students = False
        self.packs = False
        self.names_images = False

    def for_losses(
        self,
        teacher_forced: bool,
        sampled: bool,
        head: bool = False,
        students: bool = False,
        packs: bool = False,
        names_images: bool = False,
    ) -> "DetectionCollator":
        """A copy with more in its batches.

        `teacher_forced` adds `targets` (box_targets.collate_targets), `sampled` adds `asked` (collate_asked), `head` adds
        `head_targets` (head_targets.collate_head_targets), `students` says which image and tokens are a record's own
        (collate_students), also in the batches of `collate_questions`. With `packs`, training batches are packed (packed.pack).
        `names_images` adds `image_keys` (a hash of each image as the vision tower receives it).
        """
        other = copy.copy(self)
        other.encoder = self._make_encoder(locate_boxes=teacher_forced)
        other.adds_targets = teacher_forced
        other.adds_questions = sampled
        other.adds_head_targets = head
        other.locates_students = students
        other.packs = packs
        other.names_images = names_images
        return other

    def _make_encoder(self, locate_boxes: bool = False) -> Encoder:
        wording = self.grounding.system_prompt, self.grounding.format_sentence
        return Encoder(self.processor, self.grounding.get_codec(), *wording, self.grounding.noise_label, locate_boxes)

    def _require_known_template(self) -> None:
        """Raises UserError if the chat template starts responses in another way than that of training."""
        trained = self.grounding.think_prefix
        if trained is not None and trained != self.encoder.think_prefix:
            raise UserError(
                f"this checkpoint was trained with {trained!r} before each response, but its chat template writes "
                f"{self.encoder.think_prefix!r}. Take chat_template.jinja from the run's final/ folder."
            )

    # ---- one record ----------------------------------------------------------------------------------------------------

    def load(self, record: Record) -> Image.Image:
        """The record's image, or the tile that the record is. Raises UserError if the image cannot be used."""
        return self.load_all([record])[0]

    def load_all(self, records: Iterable[Record]) -> list[Image.Image]:
        """`load` for every record. An image of which consecutive records are tiles is read once."""
        images = []
        for _, views in groupby(records, key=lambda record: whole_of(record)["id"]):
            first, *others = views
            whole = self._load_whole(whole_of(first))
            images += [cut_image(whole, view) for view in (first, *others)]
        return images

    def _load_whole(self, record: Record) -> Image.Image:
        """Raises UserError where the image is missing, corrupt or of another size than the record states."""
        if self.open_image:
            return self.open_image(record)
        path = image_path(record, self.data_dir)
        try:
            image = load_image(path)
        except OSError as error:
            raise UserError(f"{record['id']}: cannot read {path} ({error}). Prepare the data again.") from None
        if image.size != (record["width"], record["height"]):
            raise UserError(
                f"{record['id']}: {path} is {image.width} × {image.height}, but the record says "
                f"{record['width']} × {record['height']}. Prepare the data again."
            )
        return image

    def resized(self, image: Image.Image) -> Image.Image:
        """An image with exactly the pixels to which `process_images` resizes it, before normalization."""
        image_processor = self.processor.image_processor
        pixels = image_processor.resize(
            pil_to_tensor(image),
            size=SizeDict(**image_processor.size),
            resample=image_processor.resample,
            factor=token_side(self.processor),
        )
        return to_pil_image(pixels)

    def save_examples(self, checkpoint: Path) -> None:
        """Write the teachers that evaluation may show into a checkpoint's folder."""
        records = self.teachers.fixed()
        save_examples(checkpoint, [(record, self.resized(self.load(record))) for record in records])

    # ---- batches -------------------------------------------------------------------------------------------------------

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some dataset rows (see lengths.as_dataset)."""
        _leave_process_group()
        records, images = zip(*map(self._read, examples), strict=True)
        features, sizes = self._process(list(chain(*images)))
        batch = self.batch_conversations(list(records), features, sizes)
        # Evaluation weighs the loss of a batch by its number of rows, so its batches stay padded.
        if self.packs and all(example.get("varied") for example in examples):
            batch = pack(batch, self.processor.image_processor.merge_size)
        if self.names_images:
            batch["image_keys"] = image_keys(**features)
        # The trainer names the records of a step that it skips.
        return {**batch, "ids": [record["id"] for record in records]}

    def _read(self, example: dict[str, Any]) -> tuple[Record, list[Image.Image]]:
        """A row's record and its images, the teachers' first."""
        record: Record = json.loads(example["record"])
        if self.teachers and example.get("varied"):
            record = self.teachers(record)
        record, image = self._vary(record, self.load(record), example)
        return record, [*self.load_all(record.get("taught_by", [])), image]

    def _vary(self, record: Record, image: Image.Image, example: dict[str, Any]) -> tuple[Record, Image.Image]:
        """Record and image, varied if the row says so and the result does not exceed max_length."""
        if self.variation is None or not example.get("varied"):
            return record, image
        varied, varied_image = self.variation(record, image)
        if self.variation.max_length is None:
            return varied, varied_image
        *teacher_sizes, size = self._expected_sizes(varied)
        fits = len(self.encoder.encode(varied, size, teacher_sizes).input_ids) <= self.variation.max_length
        return (varied, varied_image) if fits else (record, image)

    def _expected_sizes(self, record: Record) -> list[tuple[int, int]]:
        """The sizes of the resized inputs of all images that the record shows."""
        return [
            expected_input_size(self.processor, (shown["height"], shown["width"])) for shown in shown_records(record)
        ]

    def process_images(self, records: list[Record]) -> ProcessedImages:
        """The images that the records show, loaded, resized and cut into patches. One that is shown repeatedly is read once."""
        shown = list(chain(*map(shown_records, records)))
        distinct = {record["id"]: record for record in shown}
        features, sizes = self._process(self.load_all(distinct.values()))
        if len(distinct) == len(shown):
            return features, sizes
        numbers = {name: number for number, name in enumerate(distinct)}
        rows = [numbers[record["id"]] for record in shown]
        return select_images(features, rows), [sizes[row] for row in rows]

    def _process(self, images: Sequence[Image.Image]) -> ProcessedImages:
        features = self.processor.image_processor(images=list(images), return_tensors="pt")
        sizes = [grid_input_size(self.processor, grid) for grid in features["image_grid_thw"]]
        return {key: features[key] for key in ("pixel_values", "image_grid_thw")}, sizes

    def batch(self, rows: list[list[int]], features: dict[str, torch.Tensor], side: str) -> dict[str, torch.Tensor]:
        """Token ids, padded on the left or right `side`, with their masks and the image `features`."""
        input_ids = _pad(rows, self.tokenizer.pad_token_id, side)
        return {
            "input_ids": input_ids,
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, side),
            # 1 at image tokens. The model derives m-RoPE positions from it.
            "mm_token_type_ids": (input_ids == self.image_token_id).long(),
            **features,
        }

    def batch_conversations(
        self, records: list[Record], features: dict[str, torch.Tensor], sizes: list[tuple[int, int]]
    ) -> dict[str, Any]:
        """A right-padded batch with labels. `features` and `sizes` are those of `process_images`."""
        grouped = _by_record(records, sizes)
        encoded = [
            self.encoder.encode(record, size, teachers)
            for record, (*teachers, size) in zip(records, grouped, strict=True)
        ]
        own_sizes = [size for *_, size in grouped]
        batch: dict[str, Any] = self.batch([row.input_ids for row in encoded], features, side="right")
        batch["labels"] = _pad([row.labels for row in encoded], IGNORE_INDEX, side="right")
        if self.teachers:
            marks = [_mark(len(row.input_ids), row.teacher_spans) for row in encoded]
            batch["teacher_tokens"] = _pad(marks, 0, side="right").bool()
        if self.locates_students:
            lengths = [len(row.input_ids) for row in encoded]
            batch |= collate_students(records, [row.student_prompt for row in encoded], lengths, side="right")
        if self.adds_targets:
            answers = [(i, start, tokens) for i, row in enumerate(encoded) for start, tokens in row.answers]
            batch["targets"] = collate_targets(answers, own_sizes, self.codec)
        if self.adds_questions:
            batch["asked"] = self.collate_asked(records, own_sizes)
        if self.adds_head_targets:
            grounding = self.grounding
            batch["head_targets"] = collate_head_targets(
                records, encoded, grounding.classes, grounding.noise_label, self.tokenizer
            )
        return batch

    def collate_asked(self, records: list[Record], sizes: list[tuple[int, int]]) -> dict[str, Any]:
        """The questions of a batch, for sampling responses and scoring them.

        A left-padded prompt without image features; `input_sizes` (N, 2); `records` as JSON text, with the objects that the
        first question asks for.
        """
        rows = [self.encoder.encode_question(record, size) for record, size in zip(records, sizes, strict=True)]
        asked = [true_objects(as_asked(record), self.grounding.noise_label) for record in records]
        return {
            **self.batch(rows, {}, side="left"),
            "input_sizes": torch.tensor(sizes),
            "records": [json.dumps(record) for record in asked],
        }

    def collate_questions(
        self, records: list[Record], images: ProcessedImages | None = None
    ) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """(a left-padded batch for `generate`, the (height, width) of the resized input of each row's own image).

        `images`: what `process_images` returned for the records, if it was called before.
        """
        features, sizes = images or self.process_images(records)
        grouped = _by_record(records, sizes)
        prompts = [
            self.encoder.encode_question(record, size, teachers)
            for record, (*teachers, size) in zip(records, grouped, strict=True)
        ]
        batch = self.batch(prompts, features, side="left")
        if self.locates_students:
            lengths = [len(row) for row in prompts]
            spans = [self.encoder.own_part(row) for row in prompts]
            batch |= collate_students(records, spans, lengths, side="left")
        return batch, [size for *_, size in grouped]


def collate_students(
    records: list[Record], spans: list[tuple[int, int]], lengths: list[int], side: str
) -> dict[str, torch.Tensor]:
    """Which images and tokens of a batch are the records' own, rather than those of the teachers before them.

    student_images (N,): the row of each record's own image in image_grid_thw. student_prompt (N, T): true at its image and first
    question, up to the first response. spans, lengths: where that part lies in each row, and the row's length before padding.
    """
    images = torch.tensor([len(shown_records(record)) for record in records]).cumsum(0) - 1
    marks = [_mark(length, [span]) for span, length in zip(spans, lengths, strict=True)]
    return {"student_images": images, "student_prompt": _pad(marks, 0, side).bool()}


def _by_record(records: list[Record], sizes: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """`sizes`, one for each image that the records show, as one list for each record."""
    remaining = iter(sizes)
    return [[next(remaining) for _ in shown_records(record)] for record in records]


def _mark(length: int, spans: Iterable[tuple[int, int]]) -> list[int]:
    """1 at the positions inside the spans, otherwise 0."""
    marks = [0] * length
    for start, end in spans:
        marks[start:end] = [1] * (end - start)
    return marks


def select_images(features: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
    """The features of the images at `rows`, which may repeat. pixel_values holds the patches of one image after the other."""
    patches = features["pixel_values"].split(features["image_grid_thw"].prod(1).tolist())
    return {
        "pixel_values": torch.cat([patches[row] for row in rows]),
        "image_grid_thw": features["image_grid_thw"][rows],
    }


def image_keys(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> list[str]:
    """A hash of each image as the tower receives it. The pixel budget and the processor's other settings are part of that."""
    patches = pixel_values.split(image_grid_thw.prod(1).tolist())
    keys = []
    for image, grid in zip(patches, image_grid_thw, strict=True):
        digest = hashlib.blake2b(str(grid.tolist()).encode(), digest_size=16)
        digest.update(image.contiguous().numpy())  # not copied
        keys.append(digest.hexdigest())
    return keys


def _pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    """(N, longest) from rows of different lengths, filled with `value` on the "left" or "right" `side`."""
    length = max(map(len, rows))
    fill = [[value] * (length - len(row)) for row in rows]
    padded = [f + row if side == "left" else row + f for row, f in zip(rows, fill, strict=True)]
    return torch.tensor(padded)


def _leave_process_group() -> None:
    """Move a data loader's worker into its own process group.

    Ctrl-C, `timeout` and cluster schedulers signal the whole group. The training process handles the signal: it finishes its
    step and saves. A worker would die in the middle of that step.
    """
    if get_worker_info() and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
