"""The output of a frozen vision tower on disk."""

import copy

import pytest
import torch

from boxtune.batching.collator import image_keys
from boxtune.common.errors import UserError
from boxtune.data.dataset import read_records
from boxtune.models.cached_tower import cache_tower
from boxtune.models.loading import load_model
from tests.helpers.collators import make_collator
from tests.helpers.records import FAMILIES


def frozen(folder):
    return load_model(str(folder), dtype=torch.float32).requires_grad_(False)


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_outputs_are_those_of_each_image_alone(family, tiny_models, squares, tmp_path):
    """To the bit; to 1e-5 those of a batch, whose matrix products add in another order."""
    model = frozen(tiny_models[family])
    collator = make_collator(tiny_models[family], squares)
    records = read_records(squares, "train")[:3]
    features, _ = collator.process_images(records)
    grids = features["image_grid_thw"]
    call = features["pixel_values"], grids
    keys = image_keys(*call)
    assert len(set(keys)) == 3
    with torch.no_grad():
        together = model.get_image_features(*call, return_dict=True)
        patches = call[0].split(grids.prod(1).tolist())
        alone = [
            model.get_image_features(part, grid[None], return_dict=True)
            for part, grid in zip(patches, grids, strict=True)
        ]
    tower = cache_tower(model, tmp_path, max_gb=1)
    for number in range(2):
        with tower.naming(keys):
            cached = model.get_image_features(*call, return_dict=True)
        assert (tower.hits, tower.misses) == (3 * number, 3)
        for image, (mine, own, batched) in enumerate(
            zip(cached.pooler_output, alone, together.pooler_output, strict=True)
        ):
            assert torch.equal(mine, own.pooler_output[0])
            assert torch.allclose(mine, batched, atol=1e-5)
            for layer, states in enumerate(getattr(own, "deepstack_features", None) or []):
                assert torch.equal(cached.deepstack_features[layer][image], states[0])
    with torch.no_grad():
        unnamed = model.get_image_features(*call, return_dict=True)
    assert equal(unnamed.pooler_output, together.pooler_output)


def test_other_weights_have_other_files_and_a_full_cache_keeps_no_more(tiny_models, squares, tmp_path):
    collator = make_collator(tiny_models["qwen3_vl"], squares)
    features, _ = collator.process_images(read_records(squares, "train")[:3])
    call = features["pixel_values"], features["image_grid_thw"]
    keys = image_keys(*call)
    model = frozen(tiny_models["qwen3_vl"])
    changed = copy.deepcopy(model)
    next(changed.base_model.visual.parameters()).data += 0.1

    def ask(asked, max_gb):
        tower = cache_tower(asked, tmp_path, max_gb)
        with tower.naming(keys):
            return asked.get_image_features(*call, return_dict=True).pooler_output, tower

    first, tower = ask(copy.deepcopy(model), 1)
    size = tower.bytes // 3
    second, other = ask(changed, 1)
    assert other.misses == 3 and not equal(first, second)
    files = sorted(tmp_path.glob("*/*"))
    assert len(files) == 6
    next(tower.folder.iterdir()).write_bytes(b"corrupt")
    again, tower = ask(copy.deepcopy(model), 5.5 * size / 1e9)
    assert (tower.hits, tower.misses) == (2, 1) and equal(first, again)
    for path in files:
        path.unlink()
    _, tower = ask(model, 2.5 * size / 1e9)
    assert len(list(tower.folder.iterdir())) == 2 and tower.bytes <= 2.5 * size


def test_a_tower_that_is_trained_is_refused(tiny_models, tmp_path):
    model = frozen(tiny_models["qwen3_vl"])
    next(model.base_model.visual.merger.parameters()).requires_grad_(True)
    with pytest.raises(UserError, match="vision tower or its merger is trained") as error:
        cache_tower(model, tmp_path, 1)
    assert "merger.norm.weight" in str(error.value)
