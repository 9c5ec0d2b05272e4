"""Generation in batches: rows that end or loop, batches that do not fit into memory, and images that are read ahead."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.answers.repetition import LOOP_LENGTHS, loop_end
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.data.images import load_image
from boxtune.data.records import image_path
from boxtune.inference.generation import LoopStop, generate_answers
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator
from tests.helpers.records import ROOT

EMBEDDED = ROOT / "assets" / "tiny_qwen3_vl"
PROMPT, PAD = 5, 0


def looped(*answers: list[int]) -> tuple[list[bool], list[bool]]:
    """(which rows stop now, which rows are marked) for rows padded to the length of the longest."""
    longest = max(map(len, answers))
    rows = torch.tensor([[7] * PROMPT + answer + [PAD] * (longest - len(answer)) for answer in answers])
    stop = LoopStop(PROMPT, len(answers), {PAD})
    return stop(rows, None).tolist(), stop.looped


def test_three_repetitions_are_a_loop_and_two_are_not():
    words = list(range(10, 26))
    assert looped(words * 3, words * 2 + words[::-1], list(range(10, 58)))[0] == [True, False, False]
    assert looped([1] * 32, [1, 2, 3, 4] * 8)[1] == [True, True]
    assert looped(words * 3 + [1])[0] == [False], "only every 16th token is checked"
    numbers = [1, 0, 0, 8] * 4  # [100, 100, 100, 100], less than three times any object
    assert looped(list(range(20, 52)) + numbers)[0] == [False]
    assert max(LOOP_LENGTHS) * 3 <= 384
    assert loop_end(words * 9) == 48 and loop_end([1, *words * 9]) == 64 and loop_end(list(range(10, 500))) is None


def test_rows_that_have_ended_are_not_marked():
    stopped, marked = looped([5, 6, 0], list(range(10, 58)))
    assert marked == [False, False] and not stopped[1]


def test_a_response_that_would_never_end_is_stopped(squares, tiny_models):
    """An untrained model repeats itself."""
    torch.manual_seed(0)
    collator = make_collator(tiny_models["qwen2_vl"], squares)
    collator.grounding = replace(collator.grounding, max_new_tokens=400)
    model = load_model(str(tiny_models["qwen2_vl"]), dtype=torch.float32)
    answers = list(generate_answers(model, collator, read_records(squares, "test"), 3))
    lengths = [len(collator.tokenizer(answer["text"])["input_ids"]) for answer in answers]
    marked = [length for answer, length in zip(answers, lengths, strict=True) if "looped" in answer["problems"]]
    assert marked and max(marked) < 400


class Small:
    """A model on a machine whose memory holds batches of up to `most` rows."""

    def __init__(self, model, most: int):
        self.model, self.most, self.device, self.batches = model, most, model.device, []

    def generate(self, input_ids, **rest):
        self.batches.append(len(input_ids))
        if len(input_ids) > self.most:
            raise torch.OutOfMemoryError("no room")
        return self.model.generate(input_ids=input_ids, **rest)


def test_a_batch_that_does_not_fit_is_halved_and_the_responses_stay_the_same(squares, capsys):
    model = load_model(str(EMBEDDED), dtype=torch.float32)
    collator = make_collator(EMBEDDED, squares, system_prompt=SYSTEM_PROMPT, min_pixels=4096, max_pixels=50176)
    records = read_records(squares, "test")
    small = Small(model, most=2)
    answers = {answer["id"]: answer["text"] for answer in generate_answers(small, collator, records, 6)}
    assert small.batches == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "out of memory with a batch of 6 images; batch size is now 3" in capsys.readouterr().err
    alone = {answer["id"]: answer["text"] for answer in generate_answers(model, collator, records, 6)}
    assert answers == alone
    with pytest.raises(UserError, match="out of memory with a single image"):
        list(generate_answers(Small(model, most=0), collator, records, 2))


class Patient:
    """A model that responds only after images of another batch have been opened; at the last batch it does not wait."""

    def __init__(self, model, last: int):
        self.model, self.device, self.last = model, model.device, last
        self.opened, self.opened_at_response = [], []
        self.another = threading.Condition()

    def open(self, record):
        with self.another:
            self.opened.append(record["id"])
            self.another.notify()
        return load_image(image_path(record, Path()))

    def generate(self, **inputs):
        expected = min(2 + 2 * len(self.opened_at_response) + 2, self.last)
        with self.another:
            self.another.wait_for(lambda: len(self.opened) >= expected, timeout=20)
            self.opened_at_response.append(len(self.opened))
        return self.model.generate(**inputs)


def test_the_images_of_one_more_batch_are_read_while_the_model_responds(squares):
    model = load_model(str(EMBEDDED), dtype=torch.float32)
    collator = make_collator(EMBEDDED, squares, system_prompt=SYSTEM_PROMPT, min_pixels=4096, max_pixels=50176)
    records = read_records(squares, "test")
    expected = [answer["text"] for answer in generate_answers(model, collator, records, 2)]
    patient = Patient(model, last=len(records))
    collator.open_image = patient.open
    answers = list(generate_answers(patient, collator, records, 2))
    assert patient.opened_at_response == [4, 6, 6]  # never more than one batch ahead
    assert [answer["text"] for answer in answers] == expected
    assert patient.opened == [answer["id"] for answer in answers]


def test_an_image_that_cannot_be_read_ahead_stops_after_the_responses_before_it(squares):
    model = load_model(str(EMBEDDED), dtype=torch.float32)
    collator = make_collator(EMBEDDED, squares, system_prompt=SYSTEM_PROMPT, min_pixels=4096, max_pixels=50176)
    records = read_records(squares, "test")
    order = [answer["id"] for answer in generate_answers(model, collator, records, 2)]
    broken = [record | {"image": "/nowhere.png"} if record["id"] == order[2] else record for record in records]
    answers = generate_answers(model, collator, broken, 2)
    assert [next(answers)["id"], next(answers)["id"]] == order[:2]
    with pytest.raises(UserError, match=rf"{order[2]}: cannot read /nowhere.png"):
        next(answers)
