"""The prompt text other than the questions (boxtune/data/questions.py), and how a record becomes a conversation."""

from collections.abc import Sequence
from typing import Any

from boxtune.answers.codecs import Codec
from boxtune.data.questions import IMAGE, answer_category, first_question
from boxtune.data.records import Record, answer_captions, answer_objects

SYSTEM_PROMPT = "You are a helpful assistant that locates objects in images."

# Appended to every question that a <boxes> turn answers, by the codec's syntax. Saved with the checkpoint, so that evaluation
# sends the same prompt.
FORMAT_SENTENCES = {
    "qwen2_vl": "Give each object's name and bounding box, or None.",
    "json_boxes": 'Answer in JSON with "bbox_2d" and "label" for each object.',
    "click": "Answer with <click>x,y</click> and the label, one object a line, or None.",
}

CAPTION_SENTENCE = 'Answer in JSON with "bbox_2d", "label" and "caption" for each object.'

# A turn as chat templates and processors expect it: {"role": …, "content": [{"type": "text", "text": …}, {"type": "image"}]}.
Part = dict[str, str]
ChatTurn = dict[str, Any]


def format_sentence(codec: Codec) -> str:
    return CAPTION_SENTENCE if codec.has_captions else FORMAT_SENTENCES[codec.syntax]


def user_content(text: str, sentence: str) -> list[Part]:
    """The content of a user turn. Each `<image>` in the text becomes an image part."""
    parts: list[Part] = []
    for i, piece in enumerate(f"{text} {sentence}".strip().split(IMAGE)):
        if i:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def as_text(content: list[Part]) -> str:
    """The inverse of user_content: one text in which `<image>` marks the image."""
    return "".join(part.get("text", IMAGE) for part in content)


def _text_turn(role: str, text: str) -> ChatTurn:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _system_turns(prompt: str) -> list[ChatTurn]:
    return [_text_turn("system", prompt)] if prompt else []


def render(
    record: Record,
    codec: Codec,
    input_size: tuple[int, int],
    system_prompt: str,
    sentence: str,
    teacher_sizes: Sequence[tuple[int, int]] = (),
) -> tuple[list[ChatTurn], int]:
    """(conversation, number of widened boxes): the system turn, then questions and answers in the text of the codec.

    input_size: the (height, width) that the image processor produced for this record's image. teacher_sizes: the same for each
    record of its `taught_by`, whose questions and answers come first; their widened boxes are not counted.
    sentence: the format sentence. It is appended to the questions that a <boxes> turn answers.
    """
    teachers = render_teachers(record, codec, sentence, teacher_sizes)
    turns, widened = _own_turns(record, codec, input_size, sentence)
    return [*_system_turns(system_prompt), *teachers, *turns], widened


def render_teachers(
    record: Record, codec: Codec, sentence: str, teacher_sizes: Sequence[tuple[int, int]]
) -> list[ChatTurn]:
    """The questions and answers of the record's teachers. teacher_sizes: those of `render`."""
    teachers = zip(record.get("taught_by", []), teacher_sizes, strict=True)
    return [turn for teacher, size in teachers for turn in _own_turns(teacher, codec, size, sentence)[0]]


def _own_turns(record: Record, codec: Codec, input_size: tuple[int, int], sentence: str) -> tuple[list[ChatTurn], int]:
    """The questions and answers of the record alone, and the number of widened boxes."""
    image_size = (record["height"], record["width"])
    conversation: list[ChatTurn] = []
    widened = 0
    turns = record["messages"]
    for i, turn in enumerate(turns):
        text = turn["content"]
        if turn["role"] == "user":
            asks_for_boxes = i + 1 < len(turns) and answer_category(turns[i + 1]["content"])[0]
            content = user_content(text, sentence if asks_for_boxes else "")
            conversation.append({"role": "user", "content": content})
            continue
        stands_for_boxes, category = answer_category(text)
        if stands_for_boxes:
            boxes_xyxy, labels = answer_objects(record, category)
            captions = answer_captions(record, category) if codec.has_captions else None
            encoded = codec.encode(boxes_xyxy, labels, image_size, input_size, captions)
            text = encoded.text
            widened += encoded.widened
        conversation.append(_text_turn("assistant", text))
    return conversation, widened


def render_question(
    record: Record, system_prompt: str, sentence: str, teachers: Sequence[ChatTurn] = ()
) -> list[ChatTurn]:
    """The conversation that evaluation sends: the system turn, those of the teachers, and the record's first question."""
    asks_for_boxes = answer_category(record["messages"][1]["content"])[0]
    content = user_content(first_question(record), sentence if asks_for_boxes else "")
    return [*_system_turns(system_prompt), *teachers, {"role": "user", "content": content}]
