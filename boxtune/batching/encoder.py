"""One record → token ids and labels. Exactly the responses and their end tokens are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from boxtune.answers.codecs import THINK_END, THINK_START, Codec
from boxtune.answers.conversation import render, render_question
from boxtune.batching.answer_tokens import AnswerTokenizer, AnswerTokens
from boxtune.batching.thinking import training_template
from boxtune.common.errors import UserError
from boxtune.data.questions import answer_category
from boxtune.data.records import Record, shown_records

# The label of a token that is not supervised; PyTorch's cross entropy skips it.
IGNORE_INDEX = -100
# For chat templates that can think.
TEMPLATE_OPTIONS = {"enable_thinking": False}

Size = tuple[int, int]  # (height, width)
Span = tuple[int, int]  # (start, end) in tokens


@dataclass
class EncodedRecord:
    """One example before padding.

    input_ids, labels: (T,) each; labels are IGNORE_INDEX except at supervised tokens.
    input_size: (height, width) of the resized input. image_tokens, answer_tokens: numbers of those tokens, without teachers'.
    widened: boxes that rounding collapsed and the codec widened.
    answers: (position of the first token, the tokens) of every response that names boxes, if the encoder locates boxes.
    teacher_spans: (start, end) of the responses of the teachers (Record.taught_by), end tokens included.
    student_prompt: (start, end) of the record's own image and first question, up to its first response.
    """

    input_size: tuple[int, int]
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    image_tokens: int = 0
    answer_tokens: int = 0
    widened: int = 0
    answers: list[tuple[int, AnswerTokens]] = field(default_factory=list)
    teacher_spans: list[Span] = field(default_factory=list)
    student_prompt: Span = (0, 0)


def token_side(processor: ProcessorMixin) -> int:
    """Side of the square that one image token covers, in pixels of the resized input."""
    return processor.image_processor.patch_size * processor.image_processor.merge_size


def expected_input_size(processor: ProcessorMixin, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the resized input, computed from the image's (height, width) without processing it."""
    image_processor = processor.image_processor
    return smart_resize(
        *image_size,
        factor=token_side(processor),
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )


def grid_input_size(processor: ProcessorMixin, grid_thw: torch.Tensor) -> tuple[int, int]:
    """(height, width) of the resized input as the processor produced it. `grid_thw` (3,) is a row of image_grid_thw."""
    _, rows, columns = grid_thw.tolist()
    return rows * processor.image_processor.patch_size, columns * processor.image_processor.patch_size


class Encoder:
    """Tokenizes conversations with one processor, codec and prompt wording.

    noise_label: label of the noise objects whose coordinates are not supervised; "" if there are none.
    locate_boxes: whether to find the tokens of every box (EncodedRecord.answers), which losses on boxes need.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        codec: Codec,
        system_prompt: str,
        format_sentence: str,
        noise_label: str = "",
        locate_boxes: bool = False,
    ):
        self.processor = processor
        self.codec = codec
        self.system_prompt = system_prompt
        self.format_sentence = format_sentence
        self.noise_label = noise_label
        self.tokenizer = processor.tokenizer
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        self.answer_tokenizer = AnswerTokenizer(self.tokenizer, codec) if locate_boxes or noise_label else None

    def encode(self, record: Record, input_size: Size, teacher_sizes: Sequence[Size] = ()) -> EncodedRecord:
        """Tokens and labels of the whole conversation. Needs the (height, width) of the resized input, not its pixels.

        teacher_sizes: those of the inputs of `taught_by`.
        The text is tokenized in pieces that end where a response starts, so that its tokens are those of generation.
        Raises UserError if the chat template does not put a response directly after the generation prompt.
        """
        wording = self.system_prompt, self.format_sentence
        conversation, widened = render(record, self.codec, input_size, *wording, teacher_sizes)
        owners = zip(shown_records(record), [*teacher_sizes, input_size], strict=True)
        messages = [(owner, size, message) for owner, size in owners for message in owner["messages"]]
        system_turns = len(conversation) - len(messages)
        whole = self._apply_template(conversation)
        encoded = EncodedRecord(input_size, widened=widened)
        done = 0  # characters of `whole` that are encoded
        for i, turn in enumerate(conversation):
            if turn["role"] != "assistant":
                continue
            owner, size, message = messages[i - system_turns]
            prompt = self._apply_template(conversation[:i], add_generation_prompt=True)
            answer = turn["content"][0]["text"]
            self._check_template(whole, prompt, answer)
            self._append(encoded, whole[done : len(prompt)], size, supervised=False)
            if owner is not record:
                self._append_teacher(encoded, answer, size)
            else:
                if not encoded.student_prompt[1]:
                    encoded.student_prompt = self.own_part(encoded.input_ids)
                names_boxes, _ = answer_category(message["content"])
                self._append_answer(encoded, answer, names_boxes)
            done = len(prompt) + len(answer) + len(self.tokenizer.eos_token)
        self._append(encoded, whole[done:], input_size, supervised=False)
        encoded.image_tokens = encoded.input_ids[encoded.student_prompt[0] :].count(self.image_token_id)
        return encoded

    def encode_question(self, record: Record, input_size: Size, teacher_sizes: Sequence[Size] = ()) -> list[int]:
        """Token ids of the prompt that evaluation sends: system turn, first question and the start of the response."""
        if teacher_sizes:
            encoded = self.encode(record, input_size, teacher_sizes)
            return encoded.input_ids[: encoded.student_prompt[1]]
        conversation = render_question(record, self.system_prompt, self.format_sentence)
        return self._tokenize(self._apply_template(conversation, add_generation_prompt=True), input_size)

    def own_part(self, prompt: list[int]) -> Span:
        """(start, end) of the last image and its question in the token ids of a prompt: without the turns before its own."""
        backwards = prompt[::-1]
        image = backwards.index(self.image_token_id)
        ends = [i for i in range(image, len(prompt)) if backwards[i] == self.tokenizer.eos_token_id]
        return (len(prompt) - ends[0] if ends else 0, len(prompt))

    @cached_property
    def think_prefix(self) -> str:
        """The think block with which prompts end although thinking is turned off, with what follows it; "" if there is none."""
        prompt = self._apply_template([{"role": "user", "content": []}], add_generation_prompt=True)
        start = prompt.rfind(THINK_START)
        return prompt[start:] if start >= 0 else ""

    @property
    def prompt_opens_thought(self) -> bool:
        """Whether prompts end in an open think block, as those of some templates do although thinking is turned off."""
        return bool(self.think_prefix) and THINK_END not in self.think_prefix

    def _apply_template(self, conversation: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        template = training_template(str(self.processor.chat_template))
        options = {
            name: value for name, value in TEMPLATE_OPTIONS.items() if name in template
        }  # others are warned about
        return self.processor.apply_chat_template(
            conversation,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )

    def _check_template(self, whole: str, prompt: str, answer: str) -> None:
        expected = answer + self.tokenizer.eos_token
        if not whole.startswith(prompt + expected):
            raise UserError(
                "the chat template does not put a response and its end token directly after the generation prompt: "
                f"expected {expected[:80]!r}, found {whole[len(prompt) :][:80]!r}. Use the model's own template."
            )

    def _tokenize(self, text: str, input_size: tuple[int, int]) -> list[int]:
        """Token ids, with the image placeholder repeated once per image token."""
        side = token_side(self.processor)
        count = (input_size[0] // side) * (input_size[1] // side)
        expanded = text.replace(self.processor.image_token, self.processor.image_token * count)
        return self.tokenizer(expanded, add_special_tokens=False)["input_ids"]

    def _append(self, encoded: EncodedRecord, text: str, input_size: Size, supervised: bool) -> None:
        """Append text, with the tokens of an image of `input_size` in place of an image placeholder."""
        ids = self._tokenize(text, input_size)
        encoded.input_ids += ids
        encoded.labels += ids if supervised else [IGNORE_INDEX] * len(ids)

    def _append_teacher(self, encoded: EncodedRecord, answer: str, input_size: Size) -> None:
        """Append the response of a teacher and its end token. Box losses do not use its boxes."""
        start = len(encoded.input_ids)
        self._append(encoded, answer + self.tokenizer.eos_token, input_size, supervised=True)
        encoded.teacher_spans.append((start, len(encoded.input_ids)))

    def _append_answer(self, encoded: EncodedRecord, answer: str, names_boxes: bool) -> None:
        """Append a response and its end token; locate its boxes if they are needed."""
        start = len(encoded.input_ids)
        self._append(encoded, answer + self.tokenizer.eos_token, encoded.input_size, supervised=True)
        encoded.answer_tokens += len(encoded.input_ids) - start
        if self.answer_tokenizer and names_boxes:
            located = self.answer_tokenizer(answer, encoded.input_size)
            encoded.answers.append((start, self._mask_noise(located, encoded.labels, start)))

    def _mask_noise(self, answer: AnswerTokens, labels: list[int], start: int) -> AnswerTokens:
        """Remove noise objects from the targets of the response that starts at position `start`.

        The coordinates of noise objects are wrong, so their labels become IGNORE_INDEX. Their label text and the decision
        to continue to them stay supervised as text. Returns the response without these objects and decisions, so that no
        loss on boxes uses them.
        """
        true_objects = []
        for found in answer.objects:
            if found.name != self.noise_label:
                true_objects.append(found)
                continue
            first, behind = start + found.numbers[0][0], start + found.numbers[-1][-1] + 1
            labels[first:behind] = [IGNORE_INDEX] * (behind - first)
        last_token = max((index for found in true_objects for index in (*found.numbers[-1], *found.label)), default=-1)
        decisions = [decision for decision in answer.decisions if decision.index < last_token or not decision.goes_on]
        return replace(answer, objects=true_objects, decisions=decisions)
