"""Scores of objects from the probabilities of their tokens."""

import math

import numpy as np
import pytest
import torch

from boxtune.answers.codecs import CODECS
from boxtune.answers.confidence import DEFAULT, SCORERS, TokenScores, rounded_score, score_objects
from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.answers.predictions import make_prediction
from boxtune.data.dataset import read_records
from boxtune.inference.generation import generate_answers, token_spans
from boxtune.models.libraries import quiet_libraries
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator
from tests.helpers.records import ROOT

EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"
IMAGE = INPUT = (1000, 1000)


def tokens_of(text: str, sure: dict[str, float], digits=None) -> TokenScores:
    """One token per character, all certain except those in `sure`: {part of the text: probability of each character}."""
    log_probs = np.zeros(len(text))
    for part, probability in sure.items():
        start = text.index(part)
        log_probs[start : start + len(part)] = math.log(probability)
    spans = np.array([(i, i + 1) for i in range(len(text))]).reshape(-1, 2)
    certain = np.full((len(text), 10), -np.inf)
    for i, letter in enumerate(text):
        if letter.isdigit():
            certain[i, int(letter)] = 0
    for i, distribution in (digits or {}).items():
        certain[i] = np.log(distribution)
    return TokenScores(spans, log_probs, certain)


def scores(codec: str, text: str, tokens: TokenScores) -> dict[str, list[float]]:
    return score_objects(text, CODECS[codec].decode(text, IMAGE, INPUT).places, tokens)


TEXTS = {
    "qwen3_vl": '[{"bbox_2d": [111, 222, 333, 444], "label": "cat"}, {"bbox_2d": [555, 666, 777, 888], "label": "dog"}]',
    "qwen2_vl": "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(111,222),(333,444)<|box_end|>"
    "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(555,666),(777,888)<|box_end|>",
    "qwen3_vl_click": "<click>111,222</click> cat\n<click>555,666</click> dog",
}


@pytest.mark.parametrize("codec", TEXTS)
def test_each_scorer_reads_its_own_tokens(codec):
    text = TEXTS[codec]
    certain = scores(codec, text, tokens_of(text, {}))
    assert certain == {name: [1, 1] for name in SCORERS}
    found = scores(codec, text, tokens_of(text, {"222": 0.125, "dog": 0.5}))
    share = 0.125 ** (3 / (6 if codec == "qwen3_vl_click" else 12))
    assert found["coordinates"] == pytest.approx([share, 1], abs=1e-6)
    assert found["label"] == [1, 0.125]
    assert found["minimum"] == [0.125, 0.5]
    assert found["spread"] == [1, 1]  # the alternatives of the digits, not their own probabilities, decide the spread
    assert found["product"] == pytest.approx([share, 0.125], abs=1e-6)


def test_small_scores_keep_their_order():
    text = TEXTS["qwen3_vl"]
    found = scores("qwen3_vl", text, tokens_of(text, {"cat": 2.5e-9, "dog": 2.4e-9}))
    assert found["product"] == pytest.approx([2.5e-9**3, 2.4e-9**3]) and found["product"][0] > found["product"][1] > 0
    assert rounded_score(0.123456789) == 0.123457 and rounded_score(float("nan")) == 0


@pytest.mark.parametrize("codec, opening", [("qwen3_vl", ", {"), ("qwen3_vl_click", "\n<")])
def test_presence_is_the_choice_to_name_one_more_object(codec, opening):
    text = TEXTS[codec]
    found = scores(codec, text, tokens_of(text, {opening: 0.5}))
    assert found["presence"] == [1, 0.5 ** len(opening)]
    assert found["coordinates"] == [1, 1] and found["label"] == [1, 1]


def test_spread_is_the_deviation_of_an_edge_relative_to_the_side():
    text = TEXTS["qwen3_vl"]
    tens = text.index("111") + 1
    half = np.full(10, 1e-30)
    half[[1, 3]] = 0.5  # 111 or 131: a deviation of 10 on a width of 222
    found = scores("qwen3_vl", text, tokens_of(text, {}, {tens: half}))
    assert found["spread"] == [pytest.approx(1 / (1 + 10 / 222 / 4), abs=1e-6), 1]


def test_each_edge_is_compared_with_the_side_along_its_own_axis():
    text = '[{"bbox_2d": [111, 222, 333, 322], "label": "cat"}]'  # 222 × 100
    half = np.full(10, 1e-30)
    half[[1, 3]] = 0.5  # a deviation of 10
    for edge, side in (("111", 222), ("222", 100), ("333", 222), ("322", 100)):
        tens = text.index(edge) + 1
        found = scores("qwen3_vl", text, tokens_of(text, {}, {tens: half}))
        assert found["spread"] == [pytest.approx(1 / (1 + 10 / side / 4), abs=1e-6)], edge


def test_a_box_whose_digits_have_no_side_has_a_score():
    """A minus sign is not part of the digits, so the left and the right edge read the same; the box itself is clipped."""
    text = '[{"bbox_2d": [-3, 0, 3, 10], "label": "cat"}]'
    units = text.index("-3") + 1
    half = np.full(10, 1e-30)
    half[[2, 4]] = 0.5  # a deviation of 1, on a side taken as 1
    assert scores("qwen3_vl", text, tokens_of(text, {}))["spread"] == [1]
    assert scores("qwen3_vl", text, tokens_of(text, {}, {units: half}))["spread"] == [pytest.approx(1 / (1 + 1 / 4))]


def test_a_probability_that_a_server_omits_does_not_count_as_certainty():
    text = TEXTS["qwen3_vl"]
    units = text.index("444") + 2
    unknown = np.full(10, np.nan)
    found = scores("qwen3_vl", text, tokens_of(text, {}, {units: unknown}))
    assert found["spread"] == [0, 1]
    tokens = tokens_of(text, {})
    tokens.log_probs[units] = np.nan
    found = scores("qwen3_vl", text, tokens)
    assert [found[name] for name in ("coordinates", "minimum", "product")] == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ('[{"bbox_2d": {"x": 1}, "label": "dog"}, {"bbox_2d": [1, 2, 30, 40], "label": "cat"}]', ["cat"]),
        ('[{"bbox_2d": [9, 9, 99, 99], "label": "dog}, {"bbox_2d": [1, 2, 30, 40], "label": "cat"}]', ["cat"]),
        (
            '<think>[{"bbox_2d": [9, 9, 99, 99], "label": "dog"}]</think>\n[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}]',
            ["cat"],
        ),
        ('[{"bbox_2d": [1, 2, 30, 40], "label": "cat", "bbox_2d": [9, 9, 99, 99], "label": "dog"}]', ["cat", "dog"]),
    ],
)
def test_the_scores_of_an_object_come_from_its_own_tokens(text, category):
    record = {"id": "a", "image": "a.png", "width": 1000, "height": 1000}
    tokens = tokens_of(text, {"[1, 2, 30, 40]": 0.5, "cat": 0.25})
    found = make_prediction(record, "qwen3_vl", INPUT, text, 0.1, tokens)["objects"]
    assert found["category"] == category
    assert found["score_coordinates"] == [0.5, 1][: len(category)]
    assert found["score_label"] == [0.25**3, 1][: len(category)]


def test_noise_before_an_object_does_not_change_its_score():
    text = TEXTS["qwen3_vl"].replace("cat", "noise")
    tokens = tokens_of(text, {"111, 222": 0.1, "noise": 0.2, ", {": 0.5})
    record = {"id": "a", "image": "a.png", "width": 1000, "height": 1000}
    found = make_prediction(record, "qwen3_vl", INPUT, text, 0.1, tokens, noise_label="noise")["objects"]
    assert found["category"] == ["dog"]
    assert found["score"] == found["score_presence"] == [0.5 ** len(", {")]


@pytest.mark.parametrize("text", ["cat", "Fußgänger 歩行者", "🙂🙃 a", "x\ufffdy", "<|im_end|>\n"])
def test_token_spans_match_their_characters(tiny_models, text):
    tokenizer = make_collator(tiny_models["qwen3_vl"], ".").tokenizer
    ids = tokenizer(text)["input_ids"]
    found, spans = token_spans(tokenizer, ids)
    assert found == text == tokenizer.decode(ids)
    assert len(spans) == len(ids) and spans[0, 0] == 0 and spans[-1, 1] == len(text)
    for i, (start, end) in enumerate(spans):
        assert start < end and (i == 0 or start in {spans[i - 1, 0], spans[i - 1, 1]})


def test_scores_equal_the_probabilities_of_a_forward_pass(squares):
    """One unbatched forward pass over question and answer is the reference; fp32 with a cache differs by up to 1e-4."""
    quiet_libraries()
    model = load_model(str(EMBEDDED), dtype=torch.float32)
    collator = make_collator(EMBEDDED, squares, system_prompt=SYSTEM_PROMPT, min_pixels=4096, max_pixels=50176)
    records = read_records(squares, "train")[:6]
    found = 0
    for prediction in generate_answers(model, collator, records, batch_size=3):
        record = next(record for record in records if record["id"] == prediction["id"])
        objects = prediction["objects"]
        assert objects["score"] == objects[f"score_{DEFAULT}"]
        answer = collator.tokenizer(prediction["text"])["input_ids"]
        features, (size,) = collator.process_images([record])
        question = collator.encoder.encode_question(record, size)
        with torch.no_grad():
            logits = model(**collator.batch([question + answer], features, side="right")).logits[0]
        log_probs = logits[len(question) - 1 : -1].log_softmax(-1)[range(len(answer)), answer]
        text, spans = token_spans(collator.tokenizer, answer)
        places = collator.codec.decode(text, size, size).places
        for place, coordinates in zip(places, objects["score_coordinates"], strict=True):
            inside = [i for i in range(len(answer)) if place.numbers[0] <= spans[i, 0] < place.numbers[1]]
            digits = [i for i in inside if text[slice(*spans[i])].isdigit()]
            assert coordinates == pytest.approx(log_probs[digits].mean().exp().item(), abs=1e-4)
            found += 1
    assert found
