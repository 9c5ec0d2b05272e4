"""Packed batches: the same losses, gradients and positions as padded batches and single examples, for every family that packs."""

import pytest
import torch

from boxtune.batching.collator import DetectionCollator
from boxtune.batching.encoder import IGNORE_INDEX
from boxtune.batching.lengths import as_dataset
from boxtune.batching.packed import as_padded, example_lengths, rope_positions
from boxtune.batching.teachers import Teachers
from boxtune.data.dataset import read_records
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator

# Those whose layers are all attention.
PACKING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def collators(folder, data) -> tuple[DetectionCollator, DetectionCollator]:
    """(padded, packed) of examples that all have two teachers, with the targets of the box losses."""
    collator = make_collator(folder, data)
    collator.teachers = Teachers(read_records(data, "train"), 1.0, 2, seed=0)
    wanted = {"teacher_forced": True, "sampled": False}
    return collator.for_losses(**wanted), collator.for_losses(**wanted, packs=True)


def rows_of(data, count: int = 3) -> list[dict]:
    """Training rows of images of different sizes, one without objects."""
    return list(as_dataset(read_records(data, "train")[:count], data, varied=True))


def summed_loss(model, batch: dict) -> torch.Tensor:
    """The summed cross-entropy of the supervised tokens."""
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "position_ids", "pixel_values", "image_grid_thw")
    # As SFTTrainer does; with a cache, transformers would not look for the borders of examples.
    logits = model(**{name: batch[name] for name in names if name in batch}, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="sum")


def gradients(model) -> dict[str, torch.Tensor]:
    """The gradients since the last call."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PACKING)
def test_loss_and_gradients_equal_those_of_padded_and_of_single_examples(family, attention, tiny_models, squares):
    """All in float32, whose sums over rows of other lengths differ in their last bits: 1e-5 of the largest gradient."""
    padded, packed = collators(tiny_models[family], squares)
    rows = rows_of(squares)
    model = load_model(str(tiny_models[family]), dtype=torch.float32, attn_implementation=attention)
    losses, found = [], []
    for batches in ([packed(rows)], [padded(rows)], [padded([row]) for row in rows]):
        loss = sum(summed_loss(model, batch) for batch in batches)
        loss.backward()
        losses.append(loss.item())
        found.append(gradients(model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) == pytest.approx(losses[2], rel=1e-6)
    largest = max(gradient.abs().max() for gradient in found[0].values())
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(
                gradient, other[name], rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_another_example_does_not_change_the_logits_of_the_first(tiny_models, squares):
    _, packed = collators(tiny_models["qwen2_5_vl"], squares)
    first, second, third = rows_of(squares)
    model = load_model(str(tiny_models["qwen2_5_vl"]), dtype=torch.float32).eval()
    states = []
    for rows in ([first, second], [first, third]):
        batch = packed(rows)
        names = ("input_ids", "position_ids", "pixel_values", "image_grid_thw")
        with torch.no_grad():
            logits = model(**{name: batch[name] for name in names}, use_cache=False).logits
        states.append(logits[0, : example_lengths(batch)[0]])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", PACKING)
def test_positions_equal_those_of_the_model(family, tiny_models, squares):
    """Each example has three images: those of its teachers, and its own."""
    padded, _ = collators(tiny_models[family], squares)
    batch = padded(rows_of(squares))
    model = load_model(str(tiny_models[family]), dtype=torch.float32)
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
    expected, _ = model.model.get_rope_index(**{name: batch[name] for name in names})
    grids = iter(batch["image_grid_thw"].tolist())
    for i, length in enumerate(batch["attention_mask"].sum(1)):
        found = rope_positions(batch["mm_token_type_ids"][i, :length].bool(), grids, merge_size=2)
        assert torch.equal(found, expected[:, i, :length])
    assert next(grids, None) is None


def test_a_row_holds_every_token_once_and_targets_point_to_the_same_tokens(tiny_models, squares):
    padded, packed = (collator(rows_of(squares)) for collator in collators(tiny_models["qwen3_vl"], squares))
    kept = padded["attention_mask"].bool()
    assert packed["input_ids"].shape == (1, kept.sum())
    assert example_lengths(packed) == kept.sum(1).tolist()
    assert "attention_mask" not in packed, "an attention mask would hide the borders from the model"
    for at in ("digit_at", "decision_at"):
        tokens = [batch["input_ids"][tuple(batch["targets"][at].T)] for batch in (padded, packed)]
        assert len(tokens[0]) and torch.equal(*tokens)
    for key in ("input_ids", "labels", "teacher_tokens", "attention_mask"):
        expected = padded[key]
        if key == "input_ids":
            expected = expected.masked_fill(~kept, 0)
        assert torch.equal(as_padded(packed)[key], expected), key
    # The token before an example is the end of another one, so its first token must not be supervised.
    starts = (packed["position_ids"][0, 0] == 0).nonzero().flatten()
    assert (packed["labels"][0, starts] == IGNORE_INDEX).all()


def test_rows_of_evaluation_stay_padded(tiny_models, squares):
    _, packed = collators(tiny_models["qwen3_vl"], squares)
    batch = packed(list(as_dataset(read_records(squares, "train")[:2], squares)))
    assert "position_ids" not in batch and len(batch["input_ids"]) == 2
