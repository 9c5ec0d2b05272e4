"""A collator over a tiny model's processor, and the rows that it reads."""

import json

from transformers import AutoConfig

from boxtune.answers.conversation import format_sentence
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.models.config import codec_for
from boxtune.models.processors import load_processor


def make_collator(
    folder, data_dir, answer="boxes", system_prompt="Find things.", noise_label="", **budget
) -> DetectionCollator:
    processor = load_processor(str(folder), **budget)
    codec = codec_for(AutoConfig.from_pretrained(folder), answer)
    size = processor.image_processor.size
    grounding = Grounding(
        codec=codec.name,
        system_prompt=system_prompt,
        format_sentence=format_sentence(codec),
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=64,
        base_model=str(folder),
        noise_label=noise_label,
    )
    return DetectionCollator(processor, grounding, data_dir)


def as_examples(*records):
    return [{"record": json.dumps(record)} for record in records]
