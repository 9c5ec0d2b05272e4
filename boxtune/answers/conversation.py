"""All prompt text, and how a record becomes a conversation. Nothing else in the project spells a prompt."""

from boxtune.answers.codecs import Codec
from boxtune.data.questions import IMAGE, answer_category, first_question
from boxtune.data.records import Record, answer_objects

SYSTEM_PROMPT = "You are a helpful assistant that locates objects in images."

# Appended to every question that a <boxes> turn answers; saved with the checkpoint, so that evaluation asks the same.
FORMAT_SENTENCES = {
    "qwen2_vl": "Give each object's name and bounding box, or None.",
    "json": 'Answer in JSON with "bbox_2d" and "label" for each object.',
    "click": "Answer with <click>x,y</click> and the label, one object a line, or None.",
}


def format_sentence(codec: Codec) -> str:
    return FORMAT_SENTENCES[codec.syntax]


def user_content(text: str, sentence: str) -> list[dict]:
    """A user turn in the processors' own form: `<image>` becomes the picture, wherever it stands."""
    parts: list[dict] = []
    for i, piece in enumerate(f"{text} {sentence}".strip().split(IMAGE)):
        if i:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def as_text(content: list[dict]) -> str:
    """A turn's content as one text, in which `<image>` stands for the picture."""
    return "".join(part.get("text", IMAGE) for part in content)


def _system_turn(prompt: str) -> list[dict]:
    return [{"role": "system", "content": [{"type": "text", "text": prompt}]}] if prompt else []


def render(
    record: Record, codec: Codec, input_size: tuple[int, int], system_prompt: str, sentence: str
) -> tuple[list[dict], int]:
    """(conversation, widened boxes): system turn, questions with the format sentence, answers in the family's text.

    `input_size` is the (height, width) that the image processor produced for this record's picture.
    """
    image_size = (record["height"], record["width"])
    conversation, widened = _system_turn(system_prompt), 0
    turns = record["messages"]
    for i, turn in enumerate(turns):
        if turn["role"] == "user":
            asks_boxes = i + 1 < len(turns) and answer_category(turns[i + 1]["content"])[0]
            conversation.append(
                {"role": "user", "content": user_content(turn["content"], sentence if asks_boxes else "")}
            )
            continue
        stands_for_boxes, category = answer_category(turn["content"])
        text = turn["content"]
        if stands_for_boxes:
            boxes_xyxy, labels = answer_objects(record, category)
            encoded = codec.encode(boxes_xyxy, labels, image_size, input_size)
            text, widened = encoded.text, widened + encoded.widened
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    return conversation, widened


def render_question(record: Record, system_prompt: str, sentence: str) -> list[dict]:
    """The conversation that evaluation sends: system turn and the record's first question."""
    sentence = sentence if answer_category(record["messages"][1]["content"])[0] else ""
    return [*_system_turn(system_prompt), {"role": "user", "content": user_content(first_question(record), sentence)}]
