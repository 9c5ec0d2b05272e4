"""Records of pretraining → batches for the model and its heads."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from assets.build_tiny_model import build_model, build_processor, build_tokenizer
from assets.dense_targets import dense_targets, fine_targets
from assets.pretraining_images import HELD_OUT_STAGE, SIDES, draw_size
from assets.pretraining_questions import FAMILY, IRRELEVANT, RULE, make_record, texts
from boxtune.answers.conversation import FORMAT_SENTENCES, SYSTEM_PROMPT
from boxtune.answers.grounding import Grounding
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX, Encoder, token_side

MAX_NEW_TOKENS = 480  # fifteen boxes
HELD_OUT = "held out"
POSITIONED = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")  # what m-RoPE positions depend on


class SceneEncoder(Encoder):
    """The project's encoder, with a rule in the system prompt of some records, and with example turns in their questions."""

    def __init__(self, processor, codec, system_prompt: str, format_sentence: str):
        super().__init__(processor, codec, system_prompt, format_sentence)
        self.with_rule = Encoder(processor, codec, system_prompt + RULE, format_sentence)

    def encode(self, record: dict, input_size: tuple[int, int], teacher_sizes: Sequence[tuple[int, int]] = ()):
        encode = self.with_rule.encode if record["rule"] else super().encode
        return encode(record, input_size, teacher_sizes)

    def encode_question(
        self, record: dict, input_size: tuple[int, int], teacher_sizes: Sequence[tuple[int, int]] = ()
    ) -> list[int]:
        """Everything before the last response."""
        encoded = self.encode(record, input_size, teacher_sizes)
        supervised = [label != IGNORE_INDEX for label in encoded.labels]
        end = len(supervised) - supervised[::-1].index(True)
        start = end - supervised[:end][::-1].index(False)
        return encoded.input_ids[:start]


class SceneCollator(DetectionCollator):
    """The project's collator, with images from memory, one or two per record, and targets for the dense head."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with torch.device("meta"):
            self.positions = build_model(FAMILY, self.tokenizer, layers=1, vision_layers=1).model

    def _make_encoder(self, locate_boxes: bool = False) -> Encoder:
        wording = self.grounding.system_prompt, self.grounding.format_sentence
        return SceneEncoder(self.processor, self.grounding.get_codec(), *wording)

    def process_images(self, records: list[dict]):
        """The images of all records in their order; the (height, width) of each record's own."""
        features, sizes = self._process([scene.image for record in records for scene in record["scenes"]])
        counts = torch.tensor([len(record["scenes"]) for record in records])
        return features, [sizes[end - 1] for end in counts.cumsum(0).tolist()]

    def collate(self, records: list[dict], asks: bool, dense: bool) -> dict:
        """Images; with `asks`, also conversations; with `dense`, also targets of the dense head, and of the fine one if no
        conversation."""
        features, sizes = self.process_images(records)
        batch = features
        if asks:
            batch = self.batch_conversations(records, features, sizes)
            # The model would compute them itself, on a GPU with many launches for each record.
            batch["position_ids"], _ = self.positions.get_rope_index(**{key: batch[key] for key in POSITIONED})
        shown = [(scene, size) for record, size in zip(records, sizes, strict=True) for scene in record["scenes"]]
        if dense:
            batch["dense"] = _joined([dense_targets(scene, size, token_side(self.processor)) for scene, size in shown])
        if dense and not asks:
            patch, merge = (getattr(self.processor.image_processor, key) for key in ("patch_size", "merge_size"))
            batch["fine"] = _joined([fine_targets(scene, size, patch, merge) for scene, size in shown])
        return batch


def _joined(targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([target[key] for target in targets]) for key in targets[0]}


def make_processor():
    return build_processor(FAMILY, build_tokenizer(texts()), max_pixels=SIDES[-1] ** 2)


def make_collator() -> SceneCollator:
    processor = make_processor()
    size = processor.image_processor.size
    grounding = Grounding(
        codec=FAMILY,
        system_prompt=SYSTEM_PROMPT,
        format_sentence=FORMAT_SENTENCES["json_boxes"],
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        max_new_tokens=MAX_NEW_TOKENS,
        base_model="",
        irrelevant_answer=IRRELEVANT,
    )
    return SceneCollator(processor, grounding, Path())


def text_length(record: dict) -> int:
    """About how many tokens the conversation has: 18 for each object, a third of the characters of other text."""
    characters = sum(len(turn["content"]) for turn in record["messages"])
    return 18 * len(record["objects"]["bbox"]) + characters // 3


def held_out(count: int, seed: int) -> list[dict]:
    """`count` records that training never uses."""
    return [held_out_record(f"{HELD_OUT} {seed}/{i}", "boxes") for i in range(count)]


def held_out_record(name: str, talk: str) -> dict:
    return make_record(name, HELD_OUT_STAGE, draw_size(random.Random(name), HELD_OUT_STAGE), talk)
