"""The check before training: do the supervised tokens give the boxes of the dataset, on the image that the model sees?

The labels of real batches are decoded with the recipe's codec and the size of the pixels in the batch, and the boxes are
compared with the records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin

from boxtune.answers.codecs import Answer, Codec
from boxtune.answers.grounding import Grounding
from boxtune.batching.encoder import IGNORE_INDEX, expected_input_size, grid_input_size
from boxtune.data.questions import answer_category
from boxtune.data.records import Record, answer_captions, answer_objects, shown_records

# Tolerance for float arithmetic, in coordinate steps.
EPSILON = 1e-6


@dataclass
class CheckedExample:
    """One example of a batch.

    image: the image in the batch, input_size: its (height, width). texts: the supervised responses; answers: the boxes
    decoded from those that name boxes. problems: everything that is wrong with the example.
    """

    record: Record
    image: Image.Image
    input_size: tuple[int, int]
    texts: list[str]
    answers: list[Answer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def count_boxes(self) -> int:
        """Number of supervised boxes or points."""
        return sum(len(answer.labels) for answer in self.answers)


def check_batch(
    batch: dict[str, Any], records: list[Record], processor: ProcessorMixin, codec: Codec, grounding: Grounding
) -> list[CheckedExample]:
    """Decode the labels of a collated batch and compare them with `records`, which are its rows in order.

    A row with teachers gives one example for each of them, before the record's own.
    """
    grids = batch["image_grid_thw"]
    pixels_by_image = batch["pixel_values"].split([int(grid.prod()) for grid in grids])
    texts_by_row = [supervised_texts(labels, processor.tokenizer) for labels in batch["labels"]]
    shown = [part for row in zip(records, texts_by_row, strict=True) for part in _parts_of(*row)]
    checked = []
    for (record, texts), grid, pixels in zip(shown, grids, pixels_by_image, strict=True):
        example = CheckedExample(
            record=record,
            image=model_view(pixels, grid, processor.image_processor),
            input_size=grid_input_size(processor, grid),
            texts=texts,
        )
        _check_budget(example, processor, grounding)
        _check_texts(example, codec, grounding.classes)
        checked.append(example)
    return checked


def _parts_of(record: Record, texts: list[str]) -> list[tuple[Record, list[str]]]:
    """[(record, its supervised texts)] for the teachers and the record itself, which gets all that remain."""
    *teachers, own = shown_records(record)
    parts, start = [], 0
    for teacher in teachers:
        end = start + len(teacher["messages"]) // 2
        parts.append((teacher, texts[start:end]))
        start = end
    return [*parts, (own, texts[start:])]


def _check_budget(example: CheckedExample, processor: ProcessorMixin, grounding: Grounding) -> None:
    """The checkpoint must store the pixel budget that was used, because evaluation resizes images by it."""
    size = processor.image_processor.size
    budget = (size["shortest_edge"], size["longest_edge"])
    stored = (grounding.min_pixels, grounding.max_pixels)
    expected = expected_input_size(processor, (example.record["height"], example.record["width"]))
    if budget != stored or example.input_size != expected:
        height, width = example.input_size
        example.problems.append(
            f"pixel budget: the image was resized to {width} × {height} with the budget {budget}, but the checkpoint would "
            f"store {stored}"
        )


def _check_texts(example: CheckedExample, codec: Codec, classes: list[str]) -> None:
    """Compare the supervised responses with the record's answers. `classes`: those of the dataset."""
    record = example.record
    turns = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
    if len(turns) != len(example.texts):
        example.problems.append(f"{len(example.texts)} answers are supervised, the record has {len(turns)}")
    for turn, text in zip(turns, example.texts, strict=False):
        stands_for_boxes, category = answer_category(turn)
        if stands_for_boxes:
            asked = [category] if category else classes
            answer = codec.decode(text, (record["height"], record["width"]), example.input_size, asked)
            example.answers.append(answer)
            example.problems += compare_answer(record, category, answer, codec, example.input_size)
        elif text != turn:
            example.problems.append(f"{text[:80]!r} is supervised, but the record has {turn[:80]!r}")


def supervised_texts(labels: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The responses in one row of labels (T,), without their end tokens. A missing end token is noted in the text."""
    texts: list[str] = []
    current: list[int] = []

    def close(end: str) -> None:
        texts.append(tokenizer.decode(current) + end)
        current.clear()

    for token in [*labels.tolist(), IGNORE_INDEX]:
        if token == tokenizer.eos_token_id:
            close("")
        elif token != IGNORE_INDEX:
            current.append(token)
        elif current:
            close("\N{REPLACEMENT CHARACTER} no end token")
    return texts


def model_view(pixel_values: torch.Tensor, grid_thw: torch.Tensor, image_processor: BaseImageProcessor) -> Image.Image:
    """The image that the model sees, reassembled from its normalized patches.

    pixel_values (N, C · T · P · P): N patches with C channels, T equal frames and P × P pixels, ordered by merged block.
    """
    _, rows, columns = grid_thw.tolist()
    merge, patch, frames = image_processor.merge_size, image_processor.patch_size, image_processor.temporal_patch_size
    blocks = pixel_values.reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)[..., 0, :, :]
    pixels = blocks.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3).float()
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    values = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.numpy())


def compare_answer(
    record: Record, category: str | None, answer: Answer, codec: Codec, input_size: tuple[int, int]
) -> list[str]:
    """How the decoded boxes of one response differ from the record by more than rounding."""
    boxes_xyxy, labels = answer_objects(record, category)
    decoded = answer.points_xy if codec.is_click else answer.boxes_xyxy
    if answer.problems:
        return [f"the supervised text does not read cleanly as {codec.name}: {', '.join(sorted(set(answer.problems)))}"]
    if answer.labels != labels:
        return [f"labels {answer.labels} are supervised, but the record has {labels}"]
    if codec.has_captions and answer.captions != answer_captions(record, category):
        return [f"captions {answer.captions} are supervised, but the record has {answer_captions(record, category)}"]
    image_size = (record["width"], record["height"])
    steps = codec.tolerance((record["height"], record["width"]), input_size)
    problems = []
    for box, found in zip(boxes_xyxy, decoded, strict=True):
        expected = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] if codec.is_click else box
        if not _equal_but_for_rounding(found, expected, box, image_size, steps):
            rounded = [round(value, 1) for value in found]
            problems.append(
                f"{rounded} is supervised, but the record has {expected}: more than rounding (a step is {steps[0]:.2f} px)"
            )
    return problems


def _equal_but_for_rounding(
    found: Sequence[float],
    expected: Sequence[float],
    box_xyxy: Sequence[float],
    image_size: tuple[int, int],
    steps: Sequence[float],
) -> bool:
    """Whether all coordinates of a box or point are within the error that writing them may cause.

    image_size: (width, height). steps: pixels of the image per coordinate step in x and y.
    """
    collapsed = (box_xyxy[2] - box_xyxy[0] <= steps[0], box_xyxy[3] - box_xyxy[1] <= steps[1])
    return all(
        abs(value - wanted) <= _allowed_steps(wanted, image_size[i % 2], steps[i % 2], collapsed[i % 2]) * steps[i % 2]
        for i, (value, wanted) in enumerate(zip(found, expected, strict=True))
    )


def _allowed_steps(expected: float, side: float, step: float, collapsed: bool) -> float:
    """The largest rounding error of a coordinate, in steps.

    It is half a step, or one step at the far border or where the codec widened a collapsed box. In a pixel frame, which ends
    at size − 1, a box that collapses at the far border can only be widened inwards: two steps.
    """
    at_border = expected > side - step
    return (0.5, 1, 2)[collapsed + at_border] + EPSILON
