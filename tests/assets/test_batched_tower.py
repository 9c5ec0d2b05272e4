"""The vision tower of pretraining against that of transformers, and the attention that it begins with."""

import pytest
import torch

from assets.batched_tower import BatchedTower, add_batched_tower
from assets.build_tiny_model import build_model, build_tokenizer
from assets.convolutional_start import NEIGHBORS, start_as_convolution


@pytest.fixture
def model():
    return build_model("qwen3_vl", build_tokenizer(), hidden=192, layers=1, vision_layers=3)


@pytest.mark.parametrize("grids", [[(6, 8)] * 3, [(4, 4), (6, 8)]], ids=["one size", "two sizes"])
def test_results_and_gradients_are_those_of_transformers(model, grids):
    """float32; sums in another order differ by a few units in the last place."""
    grid_thw = torch.tensor([(1, *grid) for grid in grids])
    pixels = torch.randn(int(grid_thw.prod(1).sum()), 3 * 2 * 16 * 16, generator=torch.Generator().manual_seed(0))
    found = []
    for batched in (False, True):
        if batched:
            add_batched_tower(model)
        tower = model.model.visual
        assert isinstance(tower, BatchedTower) == batched
        tower.zero_grad()
        output = tower(pixels, grid_thw=grid_thw)
        output.pooler_output.square().mean().backward()
        found.append([output.pooler_output, *output.deepstack_features, tower.patch_embed.proj.weight.grad.clone()])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


def test_heads_begin_by_looking_at_one_neighbor_each(model):
    """With a value that is one at a single patch, a head's output is largest at the patch whose neighbor that is."""
    tower = model.model.visual
    start_as_convolution(tower)
    rows, columns, merge = 6, 8, 2
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")

    def in_blocks(grid):  # patches come in blocks of 2 x 2
        return grid.view(rows // merge, merge, columns // merge, merge).transpose(1, 2).flatten()

    places = torch.stack([in_blocks(y), in_blocks(x)], dim=1)
    cos, sin = tower.rotary_pos_emb(torch.zeros(1), places)
    attention = tower.blocks[1].attn
    q, k, _ = attention.qkv.bias.view(3, attention.num_heads, attention.head_dim)
    half = attention.head_dim // 2

    def rotated(vector):
        return vector * cos + torch.cat([-vector[half:], vector[:half]]) * sin

    for head, (right, down) in enumerate(NEIGHBORS):
        shares = (rotated(q[head]) @ rotated(k[head]).T * attention.scaling).softmax(-1)
        best = places[shares.argmax(1)]
        inside = (places + torch.tensor([down, right])).clamp(min=0)
        inside = (inside == places + torch.tensor([down, right])).all(1)
        inside &= (places[:, 0] + down < rows) & (places[:, 1] + right < columns)
        assert torch.equal(best[inside], places[inside] + torch.tensor([down, right]))
        assert shares.max(1).values[inside].min() > 0.5
