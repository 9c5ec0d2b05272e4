"""Gated delta nets keep a state from left to right: padding must not enter it, and examples must not share it."""

from dataclasses import replace

import pytest
import torch

from boxtune.data.dataset import read_records
from boxtune.inference.generation import generate_answers
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator

FAMILIES = ("qwen3_5", "qwen3_5_moe")
SHORT, LONG = 37, 101


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_models) -> torch.nn.Module:
    return load_model(str(tiny_models[request.param]), dtype=torch.float32).eval()


@pytest.fixture
def rows(model) -> tuple[torch.Tensor, torch.Tensor]:
    """A short and a long row of random token ids, none of them special."""
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, 256, (1, length), generator=draw) for length in (SHORT, LONG))


@torch.no_grad()
def logits(model, **inputs) -> torch.Tensor:
    return model(**inputs).logits


def differences(model, rows, side: str, with_mask: bool = True) -> tuple[float, float]:
    """The largest differences of each row's logits between a padded batch and the row by itself."""
    short, long = rows
    padding, ones = torch.full((1, LONG - SHORT), 300), torch.ones_like(short)
    parts = (padding, short) if side == "left" else (short, padding)
    mask = (0 * padding, ones) if side == "left" else (ones, 0 * padding)
    mask = torch.cat([torch.cat(mask, 1), torch.ones_like(long)])
    positions = (mask.cumsum(1) - 1).clamp(min=0).expand(4, -1, -1).contiguous()
    inputs = {"attention_mask": mask} if with_mask else {"position_ids": positions}
    batch = logits(model, input_ids=torch.cat([torch.cat(parts, 1), long]), **inputs)
    own = batch[0, -SHORT:] if side == "left" else batch[0, :SHORT]
    alone = [logits(model, input_ids=row)[0] for row in rows]
    return (own - alone[0]).abs().max().item(), (batch[1] - alone[1]).abs().max().item()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_leaves_the_logits_of_a_row_as_they_are(model, rows, side):
    assert max(differences(model, rows, side)) < 1e-5


def test_left_padding_without_a_mask_would_enter_the_state(model, rows):
    """Right padding would not: the state has passed the row before it meets the padding."""
    assert differences(model, rows, "left", with_mask=False)[0] > 0.01
    assert differences(model, rows, "right", with_mask=False)[0] < 1e-5


def test_examples_that_follow_each_other_in_one_row_share_the_state(model, rows):
    """Restarting positions separate them for attention only, so rows of several examples are not used for these families."""
    short, long = rows
    positions = torch.cat([torch.arange(SHORT), torch.arange(LONG)]).expand(4, 1, -1).contiguous()
    packed = logits(model, input_ids=torch.cat([short, long], 1), position_ids=positions)
    assert (packed[0, :SHORT] - logits(model, input_ids=short)[0]).abs().max() < 1e-5
    assert (packed[0, SHORT:] - logits(model, input_ids=long)[0]).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_different_length_get_the_same_responses_in_a_batch_as_alone(family, tiny_models, squares):
    collator = make_collator(tiny_models[family], squares)
    collator.grounding = replace(collator.grounding, max_new_tokens=24)
    records = read_records(squares, "test")
    lengths = {len(row) for row in (collator.encoder.encode_question(r, s) for r, s in sized(collator, records))}
    assert len(lengths) > 1, "there would be no padding"
    model = load_model(str(tiny_models[family]), dtype=torch.float32).eval()
    together, alone = (
        {answer["id"]: answer for answer in generate_answers(model, collator, records, size)} for size in (6, 1)
    )
    assert {name: answer["text"] for name, answer in together.items()} == {
        name: answer["text"] for name, answer in alone.items()
    }


def sized(collator, records):
    """(record, (height, width) of its resized image) pairs."""
    return zip(records, collator.process_images(records)[1], strict=True)
