"""The patch embedding as a matrix product: the same weights and names, and nearly the same numbers."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from boxtune.models.loading import load_model
from boxtune.models.patch_embedding import PatchProjection, use_matrix_products
from tests.helpers.records import FAMILIES


def convolutions(model: nn.Module) -> list[nn.Conv3d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv3d)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_loaded_with_a_matrix_product_and_saved_as_before(family, tiny_models, tmp_path):
    model = load_model(str(tiny_models[family]), dtype=torch.float32)
    original = AutoModelForImageTextToText.from_pretrained(tiny_models[family], dtype=torch.float32)
    assert [type(module) for module in convolutions(model)] == [PatchProjection]
    assert [type(module) for module in convolutions(original)] == [nn.Conv3d]
    weights, expected = model.state_dict(), original.state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)

    model.save_pretrained(tmp_path / "product")
    original.save_pretrained(tmp_path / "convolution")
    assert (tmp_path / "product" / "config.json").read_text() == (tmp_path / "convolution" / "config.json").read_text()
    saved, before = (load_file(tmp_path / name / "model.safetensors") for name in ("product", "convolution"))
    assert list(saved) == list(before) and all(torch.equal(saved[key], before[key]) for key in before)


@pytest.mark.parametrize(("patch", "width", "bias"), [((2, 14, 14), 1280, False), ((2, 16, 16), 1152, True)])
@pytest.mark.parametrize(("dtype", "largest_error"), [(torch.float32, 20), (torch.bfloat16, 0.5)])
def test_results_and_gradients_are_those_of_conv3d(patch, width, bias, dtype, largest_error):
    """`largest_error`: in units in the last place of the largest result."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(3, width, patch, patch, bias=bias, dtype=dtype))
    patches = torch.randn(8, 3, *patch, dtype=dtype)
    expected = module(patches)
    expected.float().square().mean().backward()
    gradients = [parameter.grad.float() for parameter in module.parameters()]
    module.zero_grad()

    use_matrix_products(module)
    result = module(patches)
    assert result.shape == expected.shape and result.dtype == dtype
    unit = torch.finfo(dtype).eps * expected.abs().max()
    assert (result - expected).abs().max() <= largest_error * unit
    result.float().square().mean().backward()
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        unit = torch.finfo(dtype).eps * gradient.abs().max()
        assert (parameter.grad.float() - gradient).abs().max() <= 20 * unit


def test_a_convolution_over_overlapping_patches_is_left_alone():
    module = nn.Sequential(nn.Conv3d(3, 4, 2, stride=1), nn.Conv3d(3, 4, 2, stride=2, padding=1))
    use_matrix_products(module)
    assert [type(child) for child in module] == [nn.Conv3d, nn.Conv3d]
