"""Digits, labels and decisions are found in the tokens of encoded responses with any label."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from boxtune.answers.codecs import CODECS
from boxtune.batching.answer_tokens import AnswerTokenizer
from boxtune.common.errors import UserError
from tests.helpers.records import CODEC_NAMES, ROOT

SIZE = (640, 480)  # height, width
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
BOXES = st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(1, 80)] * 2).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@pytest.fixture(scope="module")
def tokenizers():
    found = {"tiny": AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny_qwen3_vl")}
    real = Path(os.environ.get("BOXTUNE_DATA", ROOT.parent / "shared" / "data")) / "qwen_tokenizer" / "qwen3_vl"
    return found | ({"real": AutoTokenizer.from_pretrained(real)} if real.is_dir() else {})


def plain(label: str) -> bool:
    """A label that a dataset may have and that contains no part of the tag formats."""
    return not any(mark in label for mark in ("<", ">", "|")) and label == label.strip()


@pytest.mark.parametrize("codec", CODEC_NAMES)
@settings(max_examples=40, deadline=None)
@given(objects=st.lists(st.tuples(BOXES, LABELS.filter(plain)), max_size=6))
def test_every_digit_and_decision_of_an_answer_is_found(tokenizers, codec, objects):
    codec = CODECS[codec]
    labels = [label for _, label in objects]
    text = codec.encode([box for box, _ in objects], labels, SIZE, SIZE).text
    values = [[*map(float, place)] for place in _numbers(codec, text)]
    for tokenizer in tokenizers.values():
        found = AnswerTokenizer(tokenizer, codec)(text, SIZE)
        assert found.ids == tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        read = [
            [float(tokenizer.decode([found.ids[i] for i in number])) for number in o.numbers] for o in found.objects
        ]
        assert read == values
        for object_tokens, label in zip(found.objects, labels, strict=True):
            written = tokenizer.decode([found.ids[i] for i in object_tokens.label])
            assert label in written or any(sign in label for sign in '"\\') or not label.isascii()
        # There is one decision before each object and one at the end, and each is at the token that was chosen.
        assert [decision.goes_on for decision in found.decisions] == [True] * len(objects) + [False]
        for decision in found.decisions:
            assert found.ids[decision.index] == (decision.go_on if decision.goes_on else decision.stop)
            assert decision.go_on != decision.stop


def _numbers(codec, text):
    size = codec.frame.extent(SIZE)[::-1]
    answer = codec.decode(text, size, SIZE)
    return answer.points_xy if codec.is_click else answer.boxes_xyxy


def test_the_stop_token_ends_what_the_go_on_token_continues(tokenizers):
    """A response cut after a decision, with the other token in its place, decodes as the other decision."""
    codec = CODECS["qwen3_vl"]
    text = codec.encode([[1, 2, 30, 40], [5, 6, 70, 80]], ["cell", "ring"], SIZE, SIZE).text
    for tokenizer in tokenizers.values():
        found = AnswerTokenizer(tokenizer, codec)(text, SIZE)
        for count, decision in enumerate(found.decisions[:-1]):
            stopped = tokenizer.decode([*found.ids[: decision.index], decision.stop])
            closed = stopped if stopped.endswith("]") else stopped + "]"
            assert len(codec.decode(closed, SIZE, SIZE).labels) == count
            assert "unparsable" not in codec.decode(closed, SIZE, SIZE).problems


def test_a_tokenizer_that_joins_digits_is_rejected():
    vocabulary = {"[UNK]": 0, "<eos>": 1, "12": 2} | {c: i + 3 for i, c in enumerate('0123456789[]{}":, bxd_2laeobjct')}
    merges = [("1", "2")]
    joined = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]")), eos_token="<eos>"
    )
    codec = CODECS["qwen3_vl"]
    with pytest.raises(UserError, match="joins digits"):
        AnswerTokenizer(joined, codec)('[{"bbox_2d": [12, 3, 40, 50], "label": "object"}]', SIZE)


@pytest.mark.parametrize("captions", [["loose, rusty", "new"], [None, "ends with a }"], ["螺丝松动", None]])
def test_decisions_are_found_behind_captions(tokenizers, captions):
    codec = CODECS["qwen3_vl_captions"]
    boxes = [[10, 20, 110, 90], [0, 0, 300, 200]]
    text = codec.encode(boxes, ["screw", "nut"], SIZE, SIZE, captions).text
    for tokenizer in tokenizers.values():
        found = AnswerTokenizer(tokenizer, codec)(text, SIZE)
        assert [decision.goes_on for decision in found.decisions] == [True, True, False]
        assert all(found.ids[d.index] == (d.go_on if d.goes_on else d.stop) for d in found.decisions)
