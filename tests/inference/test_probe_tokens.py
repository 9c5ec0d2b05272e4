"""The probabilities of given texts: those of a plain forward pass, alone or in a padded batch, for every family."""

from functools import partial

import pytest
import torch

from boxtune.inference.batches import in_batches
from boxtune.inference.probes.tokens import response_logits, text_logits
from boxtune.inference.verifying import first_words
from boxtune.models.loading import load_model
from tests.helpers.records import ROOT

EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"
TEXTS = ["2 circle.", "1 square and 3 triangle in the image.", "No."]


def answered(records) -> list[dict]:
    return [
        record
        | {
            "messages": [
                {"role": "user", "content": "<image>Describe the image."},
                {"role": "assistant", "content": text},
            ]
        }
        for record, text in zip(records, TEXTS, strict=False)
    ]


@pytest.mark.parametrize("family", ["embedded", "qwen2_vl", "qwen2_5_vl", "qwen3_5"])
def test_logits_are_those_of_a_plain_forward_pass(tiny_models, make, records, family):
    folder = EMBEDDED if family == "embedded" else tiny_models[family]
    collator, model = make(folder), load_model(str(folder), dtype=torch.float32).eval()
    rows = answered(records)
    found = [scored for scored, _ in in_batches(collator, rows, 3, partial(response_logits, model, collator))]
    for row, (logits, tokens) in zip(rows, found, strict=True):
        assert collator.tokenizer.decode(tokens) == row["messages"][1]["content"]
        features, sizes = collator.process_images([row])
        whole = collator.batch_conversations([row], features, sizes)
        labels = whole.pop("labels")[0]
        with torch.no_grad():
            plain = model(**whole).logits[0, :-1][labels[1:] != -100]
        # The conversation also has the end token.
        assert torch.allclose(logits, plain[: len(tokens)], atol=2e-4) and len(plain) > len(tokens)


@pytest.mark.parametrize("family", ["embedded", "qwen2_vl", "qwen2_5_vl", "qwen3_5"])
@torch.no_grad()
def test_logits_of_a_text_need_no_image(tiny_models, make, family):
    folder = EMBEDDED if family == "embedded" else tiny_models[family]
    collator, model = make(folder), load_model(str(folder), dtype=torch.float32).eval()
    logits, tokens = text_logits(model, collator, TEXTS[1])
    ids = torch.tensor([collator.tokenizer(TEXTS[1])["input_ids"]])
    assert tokens.tolist() == ids[0, 1:].tolist()
    assert torch.allclose(logits, model(input_ids=ids).logits[0, :-1], atol=2e-4)


class Answering:
    """A model whose first token is given for each row."""

    def __init__(self, tokens, vocabulary):
        self.tokens, self.vocabulary, self.device = tokens, vocabulary, torch.device("cpu")

    def __call__(self, input_ids, **rest):
        logits = torch.zeros(len(input_ids), 1, self.vocabulary)
        logits[range(len(input_ids)), 0, self.tokens] = 1.0
        return type("Output", (), {"logits": logits})


def test_an_answer_that_begins_with_neither_word_is_neither(make, records):
    collator = make()
    words = ["Yes.", "no", "[]", "YES", "Nothing."]
    tokens = [collator.tokenizer.encode(word)[0] for word in words]
    model = Answering(tokens, len(collator.tokenizer))
    rows = [record | {"messages": answered(records[:1])[0]["messages"]} for record in records[:5]]
    said = first_words(model, collator, rows, collator.process_images(rows))
    assert said == [True, False, None, True, None]
