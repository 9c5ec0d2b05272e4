"""All prompt text, and how a record becomes a conversation. Nothing else in the project spells a prompt."""

from boxtune.answers.codecs import Codec
from boxtune.data.records import PLACEHOLDER, Record, answer_objects, with_objects

IMAGE = "<image>"
SYSTEM_PROMPT = "You are a helpful assistant that locates objects in images."

# Appended to every question that a <boxes> turn answers; saved with the checkpoint, so that evaluation asks the same.
FORMAT_SENTENCES = {
    "qwen2_vl": "Give each object's name and bounding box, or None.",
    "json": 'Answer in JSON with "bbox_2d" and "label" for each object.',
    "click": "Answer with <click>x,y</click> and the label, one object a line, or None.",
}

# The neutral question, and other words for it that training may draw (`prompt_variety`). The first is what data_prep asks.
QUESTIONS = (
    "Detect every {} in the image.",
    "Locate each {} in the image.",
    "Find every {} in this picture.",
    "Where is each {} in this picture?",
)


def join_names(names: list[str], word: str = "and") -> str:
    """["a", "b", "c"] → "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def question(classes: list[str], wording: str = QUESTIONS[0]) -> str:
    """The neutral question that asks for every object of `classes`, in one of QUESTIONS; it names the picture first."""
    return IMAGE + wording.format(join_names(classes))


def turns_for(classes: list[str], category: str | None = None) -> list[dict]:
    """The two turns of a record: for all `classes`, or for `category` alone, and the answer that stands for their boxes."""
    return [
        {"role": "user", "content": question([category] if category else classes)},
        {"role": "assistant", "content": f"<boxes:{category}>" if category else "<boxes>"},
    ]


def answer_category(turn: str) -> tuple[bool, str | None]:
    """(whether an assistant turn stands for boxes, the one category it is about or None for all)."""
    match = PLACEHOLDER.fullmatch(turn)
    return (match is not None, match.group(1) if match else None)


def format_sentence(codec: Codec) -> str:
    return FORMAT_SENTENCES[codec.syntax]


def first_question(record: Record) -> str:
    """The record's own first user turn, which evaluation asks."""
    return record["messages"][0]["content"]


def is_standard(record: Record) -> bool:
    """Whether the conversation is one question about all objects, which training may then ask otherwise."""
    return len(record["messages"]) == 2 and record["messages"][1]["content"] == "<boxes>"


def as_asked(record: Record) -> Record:
    """The record with only the objects that its first question asks for, which is what evaluation can score.

    Ignored objects of the class stay ignored; a first answer in plain words asks for none.
    """
    stands_for_boxes, category = answer_category(record["messages"][1]["content"])
    if stands_for_boxes and category is None:
        return record
    kept = [i for i, label in enumerate(record["objects"]["category"]) if stands_for_boxes and label == category]
    return with_objects(record, kept)


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
