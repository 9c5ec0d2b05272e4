"""Conversation + picture → tensors and labels.

Coordinates are written from the size that the image processor really produced (image_grid_thw × patch size), and
exactly the answers and their end tokens are supervised.
"""

import copy
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from transformers import ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from boxtune.answers.conversation import render, render_question
from boxtune.answers.grounding import Grounding
from boxtune.answers.noise import true_objects
from boxtune.batching.answer_tokens import AnswerTokenizer, AnswerTokens
from boxtune.batching.box_targets import collate_targets
from boxtune.batching.variation import Variation
from boxtune.common.errors import UserError
from boxtune.data.images import load_image
from boxtune.data.questions import answer_category, as_asked
from boxtune.data.records import Record, image_path

IGNORE_INDEX = -100


@dataclass
class EncodedRecord:
    """One example before padding. `input_size` is (height, width); `widened` counts boxes that rounding collapsed;
    `answers` are (position of its first token, its tokens) of the answers that name boxes, where targets or noise ask for it."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    input_size: tuple[int, int] = (0, 0)
    image_tokens: int = 0
    answer_tokens: int = 0
    widened: int = 0
    answers: list[tuple[int, AnswerTokens]] = field(default_factory=list)


def expected_input_size(processor: ProcessorMixin, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that the processor will resize to, from the picture's (height, width) alone."""
    image_processor = processor.image_processor
    return smart_resize(
        *image_size,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )


def grid_input_size(processor: ProcessorMixin, grid_thw: torch.Tensor) -> tuple[int, int]:
    """(height, width) of the resized input from one row of image_grid_thw."""
    _, rows, columns = grid_thw.tolist()
    return rows * processor.image_processor.patch_size, columns * processor.image_processor.patch_size


class DetectionCollator:
    """Turns rows {"record": JSON text} into a padded batch: input_ids, attention_mask, labels, pixel_values, image_grid_thw.

    `for_losses` gives one whose batches also hold what losses on boxes need.
    Rows that say {"varied": True}, those of training, are shown as `variation` has them in this epoch.
    """

    def __init__(
        self, processor: ProcessorMixin, grounding: Grounding, data_dir: Path, variation: Variation | None = None
    ):
        self.processor = processor
        self.grounding = grounding
        self.codec = grounding.get_codec()
        self.data_dir = Path(data_dir)
        self.variation = variation
        self.tokenizer = processor.tokenizer
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        self.find_targets: AnswerTokenizer | None = None
        self.asks = False
        self.find_noise = AnswerTokenizer(self.tokenizer, self.codec) if grounding.noise_label else None

    def for_losses(self, teacher_forced: bool, sampled: bool) -> "DetectionCollator":
        """The same with `targets` in every batch (losses.collate_targets), and its questions as `asked` (`ask`)."""
        other = copy.copy(self)
        other.find_targets = AnswerTokenizer(self.tokenizer, self.codec) if teacher_forced else None
        other.asks = sampled
        return other

    def load(self, record: Record) -> Image.Image:
        """The record's picture. Raises UserError where it is gone or no longer the one that was prepared."""
        path = image_path(record, self.data_dir)
        try:
            image = load_image(path)
        except OSError as error:
            raise UserError(f"{record['id']}: cannot read {path} ({error}). Prepare the data again.") from None
        if image.size != (record["width"], record["height"]):
            raise UserError(
                f"{record['id']}: {path} is {image.width} × {image.height}, the record says "
                f"{record['width']} × {record['height']}. Prepare the data again."
            )
        return image

    def _tokenize(self, text: str, input_size: tuple[int, int]) -> list[int]:
        """Token ids with the image placeholder repeated once per merged patch."""
        factor = self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        count = (input_size[0] // factor) * (input_size[1] // factor)
        expanded = text.replace(self.processor.image_token, self.processor.image_token * count)
        return self.tokenizer(expanded, add_special_tokens=False)["input_ids"]

    def encode(self, record: Record, input_size: tuple[int, int]) -> EncodedRecord:
        """Tokens and labels of a whole conversation; needs the size of the resized input, not its pixels.

        The text is tokenised in pieces that end where an answer starts, as generation will see it.
        """
        conversation, widened = render(
            record, self.codec, input_size, self.grounding.system_prompt, self.grounding.format_sentence
        )
        whole = self.processor.apply_chat_template(conversation, tokenize=False)
        encoded = EncodedRecord(input_size=input_size, widened=widened)
        before = len(conversation) - len(record["messages"])  # the system turn
        done = 0
        for i, turn in enumerate(conversation):
            if turn["role"] != "assistant":
                continue
            prompt = self.processor.apply_chat_template(conversation[:i], tokenize=False, add_generation_prompt=True)
            answer = turn["content"][0]["text"] + self.tokenizer.eos_token
            if not whole.startswith(prompt + answer):
                raise UserError(
                    "the chat template does not put an answer and its end token right behind the generation prompt: "
                    f"{whole[len(prompt) :][:80]!r} where {answer[:80]!r} was expected. Use the model's own template."
                )
            self._append(encoded, whole[done : len(prompt)], supervised=False)
            start = len(encoded.input_ids)
            self._append(encoded, answer, supervised=True)
            find = self.find_targets or self.find_noise
            if find and answer_category(record["messages"][i - before]["content"])[0]:
                tokens = find(answer.removesuffix(self.tokenizer.eos_token), input_size)
                encoded.answers.append((start, self._unlearn_noise(tokens, encoded.labels, start)))
            done = len(prompt) + len(answer)
        self._append(encoded, whole[done:], supervised=False)
        encoded.image_tokens = encoded.input_ids.count(self.image_token_id)
        return encoded

    def _append(self, encoded: EncodedRecord, text: str, supervised: bool) -> None:
        ids = self._tokenize(text, encoded.input_size)
        encoded.input_ids += ids
        encoded.answer_tokens += len(ids) if supervised else 0
        encoded.labels += ids if supervised else [IGNORE_INDEX] * len(ids)

    def _unlearn_noise(self, answer: AnswerTokens, labels: list[int], start: int) -> AnswerTokens:
        """Take the coordinates of noise objects, which are wrong, out of the `labels` of the answer that begins at `start`.

        Returns the answer without them, and without the decisions to go on to them, so that no loss on boxes learns either.
        """
        true = []
        for found in answer.objects:
            if found.name != self.grounding.noise_label:
                true.append(found)
                continue
            first, behind = start + found.numbers[0][0], start + found.numbers[-1][-1] + 1
            labels[first:behind] = [IGNORE_INDEX] * (behind - first)
        last = max((index for found in true for index in (*found.numbers[-1], *found.label)), default=-1)
        decisions = [decision for decision in answer.decisions if decision.index < last or not decision.goes_on]
        return replace(answer, objects=true, decisions=decisions)

    def encode_question(self, record: Record, input_size: tuple[int, int]) -> list[int]:
        """Token ids of what evaluation asks, up to where the answer starts."""
        conversation = render_question(record, self.grounding.system_prompt, self.grounding.format_sentence)
        text = self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return self._tokenize(text, input_size)

    def process_images(self, records: list[Record]) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """({pixel_values, image_grid_thw}, input sizes) of the records' pictures."""
        return self._process([self.load(record) for record in records])

    def _process(self, images: list[Image.Image]) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        features = self.processor.image_processor(images=images, return_tensors="pt")
        sizes = [grid_input_size(self.processor, grid) for grid in features["image_grid_thw"]]
        return {key: features[key] for key in ("pixel_values", "image_grid_thw")}, sizes

    def resized(self, record: Record) -> Image.Image:
        """The record's picture as `process_images` resizes it, to the pixel, before it is made into numbers."""
        image_processor = self.processor.image_processor
        pixels = image_processor.resize(
            pil_to_tensor(self.load(record)),
            size=SizeDict(**image_processor.size),
            resample=image_processor.resample,
            factor=image_processor.patch_size * image_processor.merge_size,
        )
        return to_pil_image(pixels)

    def pad(self, rows: list[list[int]], value: int, side: str) -> torch.Tensor:
        """(N, longest) from ragged rows."""
        length = max(map(len, rows))
        fill = [[value] * (length - len(row)) for row in rows]
        padded = [f + row if side == "left" else row + f for row, f in zip(rows, fill, strict=True)]
        return torch.tensor(padded)

    def batch(self, rows: list[list[int]], features: dict[str, torch.Tensor], side: str) -> dict[str, torch.Tensor]:
        input_ids = self.pad(rows, self.tokenizer.pad_token_id, side)
        return {
            "input_ids": input_ids,
            "attention_mask": self.pad([[1] * len(row) for row in rows], 0, side),
            # Tells the model where the picture stands, from which it derives m-RoPE.
            "mm_token_type_ids": (input_ids == self.image_token_id).long(),
            **features,
        }

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        if get_worker_info() and os.getpgrp() != os.getpid():
            # A signal to the whole group, as of Ctrl-C, `timeout` or a cluster, is for the training process, which finishes its
            # step and saves; a worker would die of it in the middle of that step.
            os.setpgid(0, 0)
        records, images = zip(*map(self._read, examples), strict=True)
        return self.batch_conversations(list(records), *self._process(list(images)))

    def _read(self, example: dict) -> tuple[Record, Image.Image]:
        """A row's record and picture, varied where the row asks for it and the outcome fits max_length."""
        record = json.loads(example["record"])
        image = self.load(record)
        if self.variation is None or not example.get("varied"):
            return record, image
        varied, varied_image = self.variation(record, image)
        if self.variation.max_length is None:
            return varied, varied_image
        size = expected_input_size(self.processor, (varied["height"], varied["width"]))
        fits = len(self.encode(varied, size).input_ids) <= self.variation.max_length
        return (varied, varied_image) if fits else (record, image)

    def batch_conversations(
        self, records: list[Record], features: dict[str, torch.Tensor], sizes: list[tuple[int, int]]
    ) -> dict[str, torch.Tensor]:
        """A right-padded batch with labels, from what `process_images` made of the records' pictures."""
        encoded = [self.encode(record, size) for record, size in zip(records, sizes, strict=True)]
        batch = self.batch([row.input_ids for row in encoded], features, side="right")
        batch["labels"] = self.pad([row.labels for row in encoded], IGNORE_INDEX, side="right")
        if self.find_targets:
            answers = [(i, start, tokens) for i, row in enumerate(encoded) for start, tokens in row.answers]
            batch["targets"] = collate_targets(answers, sizes, self.codec)
        if self.asks:
            batch["asked"] = self.ask(records, sizes)
        return batch

    def ask(self, records: list[Record], sizes: list[tuple[int, int]]) -> dict:
        """The questions of a batch, to sample answers to and to score them: a left-padded prompt without its pictures,
        `input_sizes` (N, 2), and as JSON text the `records` with what their first questions ask for."""
        rows = [self.encode_question(record, size) for record, size in zip(records, sizes, strict=True)]
        prompt = self.batch(rows, {}, side="left")
        return prompt | {
            "input_sizes": torch.tensor(sizes),
            "records": [json.dumps(true_objects(as_asked(record), self.grounding.noise_label)) for record in records],
        }

    def collate_questions(self, records: list[Record]) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """A left-padded batch for `generate`, and the input size of every row."""
        features, sizes = self.process_images(records)
        rows = [self.encode_question(record, size) for record, size in zip(records, sizes, strict=True)]
        return self.batch(rows, features, side="left"), sizes
