"""Examples that differ from epoch to epoch: what is asked, what noise is added, and that evaluation sees none of it."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make_record
from PIL import Image
from test_collator import make_collator
from test_train import train
from torch.utils.data import DataLoader

import evaluate
from boxtune.augmentation import OPERATIONS
from boxtune.codecs import CODECS
from boxtune.collator import IGNORE_INDEX, grid_input_size
from boxtune.errors import UserError
from boxtune.grounding import Grounding
from boxtune.noise import NOISE_LABEL, with_noise
from boxtune.predictions import make_prediction, read_predictions
from boxtune.prompts import QUESTIONS, first_question
from boxtune.records import record_problems
from boxtune.scoring import score
from boxtune.training_data import answer_budget, as_dataset, measure
from boxtune.variation import Variation

CLASSES = ["cat", "dog", "traffic light"]
OBJECTS = [([10.0, 20, 110, 90], "cat"), ([0, 0, 300, 200], "traffic light")]


def make_variation(**changes) -> Variation:
    values = {"operations": [], "negative_questions": 0.0, "prompt_variety": False, "noise_objects": 0.0}
    values |= {"classes": CLASSES, "max_pixels": 50_000, "max_length": None, "seed": 0}
    return Variation(**values | changes)


@pytest.fixture
def record(tmp_path) -> dict:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return make_record("a", "a.png", 300, 200, OBJECTS, classes=CLASSES)


def epochs(variation: Variation, record: dict, count: int):
    """The (record, picture) that each of the first epochs shows."""
    image = Image.new("RGB", (record["width"], record["height"]))
    for epoch in range(count):
        variation.epoch.fill_(epoch)
        yield variation(record, image)


def test_questions_about_one_class_are_as_often_answered_as_not(record):
    variation = make_variation(negative_questions=0.2)
    asked, known = Counter(), set(variation.questions([record]))
    for varied, _ in epochs(variation, record, 1000):
        assert record_problems(varied) == []
        text, shown = first_question(varied), set(varied["objects"]["category"])
        assert text in known
        named = {name for name in CLASSES if name in text}
        assert shown == named & {"cat", "traffic light"}
        asked["all" if len(named) == 3 else "shown" if shown else "absent"] += 1
    assert sum(asked.values()) == 1000
    assert abs(asked["absent"] - 200) < 40
    assert abs(asked["shown"] - 200) < 40


def test_an_ignored_object_is_not_absent(record):
    """Nobody knows whether a crowd of dogs holds a dog that should be found."""
    record["objects"]["ignore"] = [True, False]
    asked = {first_question(varied) for varied, _ in epochs(make_variation(negative_questions=0.5), record, 50)}
    assert asked == {
        "<image>Detect every dog in the image.",
        "<image>Detect every traffic light in the image.",
    }


def test_half_of_the_questions_keep_their_own_words(record):
    record["messages"][0]["content"] = "<image>Any animals or signals?"
    variation = make_variation(prompt_variety=True)
    asked = Counter(first_question(varied) for varied, _ in epochs(variation, record, 400))
    assert abs(asked["<image>Any animals or signals?"] - 200) < 50
    assert len(asked) == 1 + len(QUESTIONS)
    # The record's own comes first: what a checkpoint is asked where nobody says otherwise.
    assert variation.questions([record])[0] == "<image>Any animals or signals?"
    assert set(asked) == set(variation.questions([record]))


def test_other_conversations_stay_as_they_are(record):
    everything = make_variation(negative_questions=0.5, prompt_variety=True, noise_objects=1.0)
    for answer in ("<boxes:cat>", "Two."):
        other = record | {"messages": [record["messages"][0], {"role": "assistant", "content": answer}]}
        assert all(varied == other for varied, _ in epochs(everything, other, 20))
        assert everything.questions([other]) == [first_question(other)]


def test_the_epoch_and_the_seed_decide_and_not_the_workers(tiny_models, tmp_path, record):
    records = [record | {"id": str(i)} for i in range(4)]
    rows = as_dataset(records, tmp_path, varied=True)

    def batches(seed: int, workers: int, epochs=(0, 1)) -> list[torch.Tensor]:
        collator = make_collator(tiny_models["qwen3_vl"], tmp_path, max_pixels=50_000)
        collator.variation = make_variation(operations=list(OPERATIONS), prompt_variety=True, seed=seed)
        options = {"num_workers": workers, "persistent_workers": workers > 0}
        loader = DataLoader(rows, batch_size=2, collate_fn=collator, **options)
        found = []
        for epoch in epochs:
            collator.variation.epoch.fill_(epoch)
            found += [batch["pixel_values"] for batch in loader]
        return found

    def same(a, b) -> list[bool]:
        return [x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True)]

    first = batches(seed=0, workers=0)
    assert all(same(first, batches(seed=0, workers=2)))  # whose processes outlive the first epoch
    assert all(same(first[2:], batches(seed=0, workers=0, epochs=(1,))))  # as after an interruption
    assert not any(same(first[:2], first[2:]))
    assert not any(same(first, batches(seed=1, workers=0)))


def test_only_rows_of_training_are_varied(tiny_models, tmp_path, record):
    collator = make_collator(tiny_models["qwen3_vl"], tmp_path, max_pixels=50_000)
    plain = collator(list(as_dataset([record], tmp_path)))
    question, _ = collator.collate_questions([record])
    collator.variation = make_variation(operations=["resize", "color"], prompt_variety=True)
    again = collator(list(as_dataset([record], tmp_path)))
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    asked, _ = collator.collate_questions([record])
    assert all(torch.equal(question[key], asked[key]) for key in question)
    varied = collator(list(as_dataset([record], tmp_path, varied=True)))
    assert varied["pixel_values"].shape != plain["pixel_values"].shape


def test_what_would_exceed_max_length_is_shown_as_it_is(tiny_models, tmp_path, record):
    collator = make_collator(tiny_models["qwen2_5_vl"], tmp_path, max_pixels=200_000)
    [length] = measure([record], collator)
    rows, sizes = list(as_dataset([record], tmp_path, varied=True)), {}
    for limit in (None, length.total):
        collator.variation = make_variation(operations=["resize"], max_pixels=200_000, max_length=limit)
        sizes[limit] = []
        for epoch in range(12):
            collator.variation.epoch.fill_(epoch)
            sizes[limit].append(collator(rows)["input_ids"].shape[1])
    assert max(sizes[None]) > length.total
    assert max(sizes[length.total]) == length.total
    # Those that fit are varied all the same.
    assert min(sizes[length.total]) == min(sizes[None])
