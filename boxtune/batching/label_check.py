"""Before training: are the tokens that will be supervised the boxes of the source, on the picture that the model sees?

Boxes are decoded from the labels of real batches, by the recipe's codec and the size of the *pixels in the batch*, and compared
with the records.
"""

from dataclasses import dataclass, field

import torch
from PIL import Image

from boxtune.answers.codecs import Answer, Codec
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import IGNORE_INDEX, expected_input_size, grid_input_size
from boxtune.data.questions import answer_category
from boxtune.data.records import Record, answer_objects

# Slack for float arithmetic in the comparison, in coordinate steps.
EPSILON = 1e-6


@dataclass
class CheckedExample:
    """One example of a batch: what its labels say, what is wrong with it, and the picture in the batch."""

    record: Record
    texts: list[str]
    answers: list[Answer]
    input_size: tuple[int, int]
    problems: list[str] = field(default_factory=list)
    image: Image.Image | None = None

    def count_boxes(self) -> int:
        """How many boxes, or points, its labels say."""
        return sum(len(answer.labels) for answer in self.answers)


def supervised_texts(labels: torch.Tensor, tokenizer) -> list[str]:
    """The answers in one row of labels (T,), each without its end token. An answer that lacks one keeps a note of it."""
    texts, current = [], []
    for token in labels.tolist():
        if token == IGNORE_INDEX:
            if current:
                texts.append(tokenizer.decode(current) + "\N{REPLACEMENT CHARACTER} no end token")
            current = []
        elif token == tokenizer.eos_token_id:
            texts.append(tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    return texts + ([tokenizer.decode(current) + "\N{REPLACEMENT CHARACTER} no end token"] if current else [])


def model_view(pixel_values: torch.Tensor, grid_thw: torch.Tensor, image_processor) -> Image.Image:
    """The picture that the model sees, put together again from its normalised patches (patches, C · T · P · P)."""
    _, rows, columns = grid_thw.tolist()
    merge, patch, frames = image_processor.merge_size, image_processor.patch_size, image_processor.temporal_patch_size
    blocks = pixel_values.reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)[..., 0, :, :]
    pixels = blocks.permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3).float()
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    values = ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.numpy())


def _edge_problem(got: float, want: float, size: float, step: float, collapsed: bool) -> bool:
    """Whether one coordinate errs by more than half a step; one step at the far border or where a box was widened.

    A box that collapses at the far border of a pixel frame, which ends at size − 1, can only be widened inwards: two.
    """
    at_border = want > size - step
    allowed = (0.5, 1, 2)[collapsed + at_border] + EPSILON
    return abs(got - want) > allowed * step


def compare_answer(record: Record, category: str | None, answer: Answer, codec: Codec, input_size) -> list[str]:
    """How the decoded labels of one turn differ from the record, beyond rounding."""
    boxes_xyxy, labels = answer_objects(record, category)
    got = answer.points_xy if codec.is_click else answer.boxes_xyxy
    if answer.problems:
        return [f"the supervised text does not read cleanly as {codec.name}: {', '.join(sorted(set(answer.problems)))}"]
    if answer.labels != labels:
        return [f"labels {answer.labels} are supervised, the record has {labels}"]
    steps = codec.tolerance((record["height"], record["width"]), input_size)
    sizes = (record["width"], record["height"])
    problems = []
    for box, found in zip(boxes_xyxy, got, strict=True):
        want = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] if codec.is_click else box
        narrow = [box[2] - box[0] <= steps[0], box[3] - box[1] <= steps[1]]
        wrong = [
            _edge_problem(g, w, sizes[i % 2], steps[i % 2], narrow[i % 2])
            for i, (g, w) in enumerate(zip(found, want, strict=True))
        ]
        if any(wrong):
            rounded = [round(value, 1) for value in found]
            problems.append(
                f"{rounded} is supervised, the record has {want}: more than rounding (a step is {steps[0]:.2f} px)"
            )
    return problems


def check_batch(
    batch: dict, records: list[Record], processor, codec: Codec, grounding: Grounding
) -> list[CheckedExample]:
    """Decode the labels of one collated batch and compare them with `records`, which are its rows in order."""
    size = processor.image_processor.size
    budget = (size["shortest_edge"], size["longest_edge"])
    checked, start = [], 0
    for row, record in enumerate(records):
        grid = batch["image_grid_thw"][row]
        patches = int(grid.prod())
        input_size = grid_input_size(processor, grid)
        example = CheckedExample(record, supervised_texts(batch["labels"][row], processor.tokenizer), [], input_size)
        example.image = model_view(batch["pixel_values"][start : start + patches], grid, processor.image_processor)
        start += patches
        expected = expected_input_size(processor, (record["height"], record["width"]))
        if budget != (grounding.min_pixels, grounding.max_pixels) or input_size != expected:
            example.problems.append(
                f"pixel budget: the picture came out {input_size[1]} × {input_size[0]} under {budget}, the checkpoint would "
                f"remember {(grounding.min_pixels, grounding.max_pixels)}"
            )
        turns = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
        if len(turns) != len(example.texts):
            example.problems.append(f"{len(example.texts)} answers are supervised, the record has {len(turns)}")
        for turn, text in zip(turns, example.texts, strict=False):
            stands_for_boxes, category = answer_category(turn)
            if stands_for_boxes:
                answer = codec.decode(text, (record["height"], record["width"]), input_size)
                example.answers.append(answer)
                example.problems += compare_answer(record, category, answer, codec, input_size)
            elif text != turn:
                example.problems.append(f"{text[:80]!r} is supervised, the record says {turn[:80]!r}")
        checked.append(example)
    return checked
