"""The verifier asks the model: its scores are those of a plain forward pass, in batches of any size."""

import json
from functools import partial

import pytest
import torch

from boxtune.answers.confidence import SCORERS
from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.common.errors import UserError
from boxtune.common.json_lines import to_json_line
from boxtune.data.images import load_image
from boxtune.data.records import image_path
from boxtune.inference.batches import in_batches
from boxtune.inference.generation import generate_answers
from boxtune.inference.verifying import answer_log_odds
from boxtune.models.loading import load_model
from tests.helpers.records import ROOT

EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"
CLASSES = ["red square", "blue square"]


@pytest.fixture(scope="module")
def verified(model, make, records) -> dict[str, dict]:
    return by_id(generate_answers(model, make(verify=True), records, 4))


def by_id(predictions) -> dict[str, dict]:
    return {prediction["id"]: prediction for prediction in predictions}


@torch.no_grad()
def score_by_hand(model, processor, record, data_dir, question: str) -> float:
    """The share of "Yes" against "No" as the first token, with the processor's own prompt and the whole logits."""
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
    ]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    image = load_image(image_path(record, data_dir))
    logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
    words = [processor.tokenizer(word)["input_ids"][0] for word in ("Yes.", "No.")]
    return logits[words].softmax(-1)[0].item()


def test_a_score_is_that_of_a_plain_forward_pass(model, make, records, squares, verified):
    processor, found = make().processor, 0
    for record in records:
        prediction = verified[record["id"]]
        texts = [row["bbox_2d"] for row in json.loads(prediction["text"])]
        objects = prediction["objects"]
        for numbers, label, score in zip(texts, objects["category"], objects["score"], strict=True):
            question = f"Is the {label} in the box {numbers}?"
            by_hand = score_by_hand(model, processor, record, squares, question)
            assert score == pytest.approx(by_hand, abs=2e-5)
            found += 1
        assert objects["score"] == objects["score_verify"] and "score_product" in objects
    assert found > 3 and len({score for p in verified.values() for score in p["objects"]["score"]}) > 3


def test_without_the_verifier_everything_else_is_the_same(model, make, records, verified):
    """What the verifier adds are its column and `score`."""
    plain = by_id(generate_answers(model, make(), records, 4))
    for name, prediction in verified.items():
        objects = {key: column for key, column in prediction["objects"].items() if key != "score_verify"}
        objects["score"] = objects["score_product"]
        lines = (prediction | {"objects": objects, "seconds": 0}, plain[name] | {"seconds": 0})
        assert to_json_line(lines[0]) == to_json_line(lines[1])
        assert [key for key in plain[name]["objects"] if key.startswith("score_")] == [f"score_{s}" for s in SCORERS]


def rows_of(records) -> list[dict]:
    """A question of the verifier about each record."""
    texts = [f"<image>Is the {name} in the box {[i, 20, 300 + i, 400]}?" for i, name in enumerate(CLASSES * 3)]
    answer = {"role": "assistant", "content": "Yes."}
    return [
        record | {"messages": [{"role": "user", "content": text}, answer]}
        for record, text in zip(records, texts, strict=True)
    ]


def log_odds(model, collator, rows, batch_size) -> list[float]:
    answer = partial(answer_log_odds, model, collator)
    return [odds for odds, _ in in_batches(collator, rows, batch_size, answer)]


@pytest.mark.parametrize("family", ["embedded", "qwen2_vl", "qwen2_5_vl", "qwen3_5"])
def test_a_batch_gives_the_log_odds_of_single_questions(tiny_models, make, records, family):
    """To 1e-4 in float32, over images of different sizes, whose prompts are padded to one length."""
    folder = EMBEDDED if family == "embedded" else tiny_models[family]
    collator, model = make(folder), load_model(str(folder), dtype=torch.float32).eval()
    rows = rows_of(records)
    together, alone = log_odds(model, collator, rows, 6), log_odds(model, collator, rows, 1)
    assert together == pytest.approx(alone, abs=1e-4) and max(alone) - min(alone) > 1e-3


class Small:
    """A model on a machine whose memory holds a single question."""

    def __init__(self, model):
        self.model, self.device, self.batches = model, model.device, []

    def __call__(self, input_ids, **rest):
        self.batches.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("no room")
        return self.model(input_ids=input_ids, **rest)


def test_questions_that_do_not_fit_into_memory_are_asked_one_by_one(model, make, records):
    rows, small = rows_of(records)[:4], Small(model)
    assert log_odds(small, make(), rows, 4) == log_odds(model, make(), rows, 1)
    assert small.batches == [4, 2, 1, 1, 1, 1]


def test_a_template_that_opens_a_think_block_is_refused_by_name(model, make, records):
    collator = make(verify=True)
    collator.encoder.think_prefix = "<think>\n"
    with pytest.raises(UserError, match="verify: this model's chat template opens a think block"):
        list(generate_answers(model, collator, records, 4))
