"""Generation in batches: rows that end, rows that loop, and batches that do not fit into memory."""

from dataclasses import replace

import pytest
import torch

from boxtune.answers.conversation import SYSTEM_PROMPT
from boxtune.answers.repetition import LOOP_LENGTHS, loop_end
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
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
