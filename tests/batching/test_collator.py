"""The supervised tokens, with the real processor of every family."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, Qwen2VLImageProcessor
from trl.chat_template_utils import get_training_chat_template

from boxtune.answers.conversation import render
from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX, expected_input_size, grid_input_size
from boxtune.common.errors import UserError
from boxtune.models.config import codec_for
from tests.helpers.collators import as_examples, make_collator
from tests.helpers.records import FAMILIES, make_record

OBJECTS = [([10.0, 20, 110, 90], "cat"), ([0, 0, 300, 200], "traffic light")]


@pytest.fixture
def record(tmp_path) -> dict:
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "a.png")
    return make_record("a", "a.png", 300, 200, OBJECTS)


@pytest.mark.parametrize("answer", ["boxes", "click"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_answer_and_its_end_token_are_supervised(tiny_models, tmp_path, record, family, answer):
    collator = make_collator(tiny_models[family], tmp_path, answer)
    batch = collator(as_examples(record))
    tokenizer = collator.tokenizer
    input_size = grid_input_size(collator.processor, batch["image_grid_thw"][0])
    text = collator.codec.encode([box for box, _ in OBJECTS], [n for _, n in OBJECTS], (200, 300), input_size).text
    labels = batch["labels"][0]
    assert labels[labels != IGNORE_INDEX].tolist() == tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    # The supervised tokens are one contiguous part of the input and end before the final line break.
    assert torch.equal(labels[labels != IGNORE_INDEX], batch["input_ids"][0][labels != IGNORE_INDEX])
    assert tokenizer.decode(batch["input_ids"][0, -2:]) == "<|im_end|>\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_mask_equal_those_of_trls_training_template(tiny_models, tmp_path, record, family):
    """The whole conversation, tokenized by the processor itself, with the mask of TRL's training template."""
    collator = make_collator(tiny_models[family], tmp_path)
    ours = collator(as_examples(record))
    input_size = grid_input_size(collator.processor, ours["image_grid_thw"][0])
    conversation, _ = render(
        record, collator.codec, input_size, collator.grounding.system_prompt, collator.grounding.format_sentence
    )
    for part in conversation[1]["content"]:
        if part["type"] == "image":
            part["image"] = Image.open(tmp_path / "a.png")
    theirs = collator.processor.apply_chat_template(
        conversation,
        chat_template=get_training_chat_template(collator.processor),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert torch.equal(ours["mm_token_type_ids"], theirs["mm_token_type_ids"])
    supervised = theirs["input_ids"][theirs["assistant_masks"].bool()].tolist()
    line_break = collator.tokenizer("\n")["input_ids"]
    # TRL's mask includes the line break after the end token, which no server generates.
    assert ours["labels"][ours["labels"] != IGNORE_INDEX].tolist() + line_break == supervised


# The end of a template whose thinking can be turned off, and of one that always thinks.
OPTIONAL_THOUGHT = "<think>{% if enable_thinking is false %}</think>{% endif %}"


@pytest.mark.parametrize(("ending", "opens_thought"), [("", False), (OPTIONAL_THOUGHT, False), ("<think>", True)])
def test_thinking_is_turned_off_where_the_template_allows_it(
    tiny_models, tmp_path, record, caplog, ending, opens_thought
):
    collator = make_collator(tiny_models["qwen3_vl"], tmp_path)
    collator.processor.chat_template += "{% if add_generation_prompt %}" + ending + "{% endif %}"
    assert collator.encoder.prompt_opens_thought == opens_thought
    prompt = collator.tokenizer.decode(collator.encoder.encode_question(record, (64, 64)))
    assert prompt.endswith("<think></think>" if ending == OPTIONAL_THOUGHT else ending)
    assert not caplog.records, "transformers warns of options that the template does not know"


@pytest.mark.parametrize("family", FAMILIES)
def test_one_class_negative_empty_and_several_turns(tiny_models, tmp_path, record, family):
    collator = make_collator(tiny_models[family], tmp_path)
    turns = [("<boxes:cat>", ["cat"]), ("<boxes:dog>", []), ("<boxes>", ["cat", "traffic light"]), ("Two.", None)]
    messages = []
    for i, (answer, _) in enumerate(turns):
        messages += [
            {"role": "user", "content": f"{'<image>' * (i == 0)}Question {i}?"},
            {"role": "assistant", "content": answer},
        ]
    several = record | {"messages": messages}
    empty = make_record("empty", "a.png", 300, 200, [])
    batch = collator(as_examples(several, empty))
    tokenizer, size = collator.tokenizer, grid_input_size(collator.processor, batch["image_grid_thw"][0])
    kept = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist()
    texts = tokenizer.decode(kept).split(tokenizer.eos_token)
    assert texts[-1] == ""
    for text, (_, labels) in zip(texts[:-1], turns, strict=True):
        if labels is None:
            assert text == "Two."
        else:
            assert collator.codec.decode(text, (200, 300), size).labels == labels
    nothing = batch["labels"][1][batch["labels"][1] != IGNORE_INDEX].tolist()
    assert nothing == tokenizer("None" if family == "qwen2_vl" else "[]")["input_ids"] + [tokenizer.eos_token_id]
    # Padding is neither attended to nor supervised.
    pads = batch["attention_mask"][1] == 0
    assert pads.any()
    assert (batch["labels"][1][pads] == IGNORE_INDEX).all()
    assert (batch["input_ids"][1][pads] == tokenizer.pad_token_id).all()


def test_ignored_objects_are_not_part_of_the_answer(tiny_models, tmp_path, record):
    record["objects"]["ignore"] = [True, False]
    collator = make_collator(tiny_models["qwen2_5_vl"], tmp_path)
    labels = collator(as_examples(record))["labels"][0]
    assert '"cat"' not in collator.tokenizer.decode(labels[labels != IGNORE_INDEX])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_question_is_the_prompt_of_training(tiny_models, tmp_path, record, family):
    """The prompt of generation must have exactly the tokens that preceded the response in training."""
    collator = make_collator(tiny_models[family], tmp_path)
    batch = collator(as_examples(record))
    question, sizes = collator.collate_questions([record])
    start = int((batch["labels"][0] != IGNORE_INDEX).nonzero()[0])
    assert question["input_ids"][0].tolist() == batch["input_ids"][0, :start].tolist()
    assert sizes == [grid_input_size(collator.processor, batch["image_grid_thw"][0])]


@pytest.mark.parametrize(("patch", "budgets"), [(14, (3136, 50176, 1003520)), (16, (4096, 65536, 1310720))])
def test_sizes_are_known_before_the_image_is_opened(patch, budgets):
    """smart_resize from the size alone equals image_grid_thw × patch of the real image processor."""

    class Holder:
        pass

    for max_pixels in budgets[1:]:
        holder = Holder()
        holder.image_processor = Qwen2VLImageProcessor(
            patch_size=patch, merge_size=2, size={"shortest_edge": budgets[0], "longest_edge": max_pixels}
        )
        for width, height in [
            (1, 150),
            (30, 30),
            (28, 5000),
            (640, 480),
            (481, 639),
            (1999, 1201),
            (333, 77),
            (4000, 21),
        ]:
            grid = holder.image_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")[
                "image_grid_thw"
            ]
            assert expected_input_size(holder, (height, width)) == grid_input_size(holder, grid[0]), (width, height)


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_survive_real_processors_at_many_sizes_and_budgets(tiny_models, tmp_path, family):
    config = AutoConfig.from_pretrained(tiny_models[family])
    codec = codec_for(config)
    for max_pixels in (20_000, 100_000, 400_000):
        collator = make_collator(tiny_models[family], tmp_path, min_pixels=None, max_pixels=max_pixels)
        for i, (width, height) in enumerate([(64, 64), (640, 480), (301, 997), (1200, 90)]):
            Image.new("RGB", (width, height)).save(tmp_path / f"{i}.png")
            box = [width * 0.137, height * 0.211, width * 0.803, height * 0.977]
            record = make_record(str(i), f"{i}.png", width, height, [(box, "cat"), ([0, 0, width, height], "dog")])
            batch = collator(as_examples(record))
            input_size = grid_input_size(collator.processor, batch["image_grid_thw"][0])
            labels = batch["labels"][0]
            text = collator.tokenizer.decode(labels[labels != IGNORE_INDEX][:-1])
            answer = codec.decode(text, (height, width), input_size)
            steps = codec.tolerance((height, width), input_size) * 2
            assert answer.problems == []
            for got, want, step in zip(answer.boxes_xyxy[0], box, steps, strict=True):
                assert abs(got - want) <= 0.5 * step + 1e-6
            for got, want, step in zip(answer.boxes_xyxy[1], [0, 0, width, height], steps, strict=True):
                assert abs(got - want) <= step + 1e-6


def test_real_vocabulary_splits_digits_and_keeps_the_codec(shared_data, tiny_models, tmp_path, record):
    """With Qwen's own tokenizer: every digit is a token, and supervised text decodes to the same boxes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from assets.build_tiny_model import SPECIAL_TOKENS, SPLIT_PATTERN, build_processor

    folder = shared_data / "qwen_tokenizer" / "qwen3_vl"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = [
        tuple(line.split(" "))
        for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#version")
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    assert fast.convert_tokens_to_ids("<|im_end|>") == 151645
    for family in FAMILIES:
        collator = make_collator(tiny_models[family], tmp_path)
        collator = DetectionCollator(build_processor(family, fast), collator.grounding, tmp_path)
        batch = collator(as_examples(record))
        labels = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX]
        pieces = [fast.decode([token]) for token in labels.tolist()]
        assert all(
            len(piece.strip(" ")) == 1 for piece in pieces if any(c.isdigit() for c in piece) and "_" not in piece
        )
        size = grid_input_size(collator.processor, batch["image_grid_thw"][0])
        answer = collator.codec.decode(fast.decode(labels[:-1]), (200, 300), size)
        assert (answer.problems, answer.labels) == ([], ["cat", "traffic light"])


def test_a_changed_or_missing_image_is_reported(tiny_models, tmp_path, record):
    collator = make_collator(tiny_models["qwen2_5_vl"], tmp_path)
    Image.new("RGB", (150, 100)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is 150 × 100, but the record says 300 × 200"):
        collator(as_examples(record))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="cannot read"):
        collator(as_examples(record))
