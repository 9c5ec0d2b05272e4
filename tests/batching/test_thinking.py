"""Chat templates that can think: training and asking put the same empty think block before each response."""

from dataclasses import replace
from importlib.resources import files

import pytest
from transformers import AutoTokenizer
from trl.chat_template_utils import get_training_chat_template

from assets.build_tiny_model import build_processor
from boxtune.answers.conversation import render
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.batching.thinking import training_template
from boxtune.common.errors import UserError
from tests.helpers.collators import make_collator
from tests.helpers.records import make_record

RELEASES = ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"]
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
SIZE = (64, 96)


def published(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def collator_of(tiny_models, folder, release: str, edit: str = "") -> DetectionCollator:
    """The same model folder with the chat template of any release: nothing but the template's content tells them apart."""
    collator = make_collator(tiny_models["qwen3_5"], folder)
    collator.processor.chat_template = published(release) + edit
    return collator


@pytest.fixture
def record() -> dict:
    """Two questions about one image."""
    one = make_record("a", "a.png", 300, 200, [([10.0, 20, 110, 90], "cat")])
    again = [{"role": "user", "content": "And dogs?"}, {"role": "assistant", "content": "<boxes:dog>"}]
    return one | {"messages": [*one["messages"], *again]}


@pytest.mark.parametrize("release", RELEASES)
def test_tokens_equal_those_of_trls_training_template(tiny_models, tmp_path, record, release):
    collator = collator_of(tiny_models, tmp_path, release)
    encoder = collator.encoder
    encoded = encoder.encode(record, SIZE)
    wording = collator.grounding.system_prompt, collator.grounding.format_sentence
    conversation, _ = render(record, collator.codec, SIZE, *wording)
    text = collator.processor.apply_chat_template(
        conversation,
        chat_template=get_training_chat_template(collator.processor),
        tokenize=False,
        enable_thinking=False,
    )
    assert text.count(EMPTY_THOUGHT) == 2
    image = collator.processor.image_token
    assert collator.tokenizer.decode(encoded.input_ids).replace(image * 6, image) == text
    # The empty think block is part of the prompt, so it is not supervised.
    supervised = collator.tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX])
    answers = [turn["content"][0]["text"] for turn in conversation if turn["role"] == "assistant"]
    assert supervised == "".join(answer + "<|im_end|>" for answer in answers)


@pytest.mark.parametrize("release", RELEASES)
def test_a_question_ends_with_the_empty_think_block_that_training_put_there(tiny_models, tmp_path, record, release):
    collator = collator_of(tiny_models, tmp_path, release)
    question, encoded = collator.encoder.encode_question(record, SIZE), collator.encoder.encode(record, SIZE)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORE_INDEX)
    assert question == encoded.input_ids[:first]
    assert collator.tokenizer.decode(question).endswith(f"<|im_start|>assistant\n{EMPTY_THOUGHT}")
    assert collator.encoder.think_prefix == EMPTY_THOUGHT and not collator.encoder.prompt_opens_thought
    # A server applies the published template, with the same option.
    conversation, _ = render(record, collator.codec, SIZE, collator.grounding.system_prompt, "")
    served = collator.processor.apply_chat_template(
        conversation[:2], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert served.endswith(f"<|im_start|>assistant\n{EMPTY_THOUGHT}") and "Reasoning effort" not in served


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_the_real_vocabulary_reads_the_same_prompt_in_training_and_asking(
    tiny_models, tmp_path, shared_data, record, family
):
    """Each tag is one token, and boxes come back from the supervised tokens."""
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen_tokenizer" / "qwen3_vl")
    grounding = make_collator(tiny_models[family], tmp_path).grounding
    collator = DetectionCollator(build_processor(family, tokenizer), grounding, tmp_path)
    question, encoded = collator.encoder.encode_question(record, SIZE), collator.encoder.encode(record, SIZE)
    assert question == encoded.input_ids[: len(question)]
    if family != "qwen3_vl_moe":
        tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
        assert [token for token in question[-4:] if token in tags] == tags
        assert encoded.input_ids.count(tags[0]) == 2  # one before each response
    supervised = [label for label in encoded.labels if label != IGNORE_INDEX]
    first, second = tokenizer.decode(supervised).split("<|im_end|>")[:2]
    answer = collator.codec.decode(first, (200, 300), SIZE)
    assert (answer.labels, answer.problems, second) == (["cat"], [], "[]")
    assert answer.boxes_xyxy[0] == pytest.approx([10, 20, 110, 90], abs=0.5)


def test_the_release_follows_from_the_content_of_the_template():
    variants = {release: training_template(published(release)) for release in RELEASES}
    assert variants == {release: published(f"{release}_training") for release in RELEASES}
    other = published("qwen3_6") + "{# mine #}"
    assert training_template(other) == other
    assert training_template(published("qwen3_vl")) == published("qwen3_vl")


def test_an_unknown_template_is_used_as_it_is_and_refused_where_turns_would_differ(tiny_models, tmp_path, record):
    encoder = collator_of(tiny_models, tmp_path, "qwen3_6", edit="{# mine #}").encoder
    single = record | {"messages": record["messages"][:2]}
    assert EMPTY_THOUGHT in encoder.tokenizer.decode(encoder.encode(single, SIZE).input_ids)
    with pytest.raises(
        UserError, match="does not put a response and its end token directly after the generation prompt"
    ):
        encoder.encode(record, SIZE)


def test_a_checkpoint_remembers_the_think_block_of_training(tiny_models, tmp_path):
    collator = collator_of(tiny_models, tmp_path, "qwen3_6")
    grounding = replace(collator.grounding, think_prefix=collator.encoder.think_prefix)
    DetectionCollator(collator.processor, grounding, tmp_path)
    collator.processor.chat_template = published("qwen3_vl")  # as another trainer may have left it
    with pytest.raises(
        UserError, match=r"trained with '<think>\\n\\n</think>\\n\\n' before each response, but .* writes ''"
    ):
        DetectionCollator(collator.processor, grounding, tmp_path)
    DetectionCollator(collator.processor, replace(grounding, think_prefix=None), tmp_path)  # of an earlier version
