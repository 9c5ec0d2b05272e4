"""Several model objects with the same weights: nothing is copied, and each keeps the positions of its own batch."""

import bitsandbytes
import torch

from boxtune.models.shared_weights import share_weights
from tests.helpers.http_api import embedded_detector, shapes


def test_a_second_model_holds_no_second_weights_and_answers_the_same():
    detector = embedded_detector()
    other = detector.with_shared_weights()
    first, second = detector.model.state_dict(), other.model.state_dict()
    assert first.keys() == second.keys()
    assert all(first[name].data_ptr() == second[name].data_ptr() for name in first)
    images = shapes(2)
    expected = [found.text for found in detector(images)]
    assert [found.text for found in other(images)] == expected and any(expected)


def test_layers_are_other_objects_with_tied_weights_still_tied():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["a"].register_buffer("seen", torch.zeros(1))
    other = share_weights(model)
    assert other["a"] is not model["a"] and other["a"].weight is other["b"].weight is model["a"].weight
    assert other["a"].seen is model["a"].seen


def test_a_quantized_layer_is_shared_too():
    layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4").to("cpu")
    other = share_weights(layer)
    x = torch.randn(2, 64)
    assert torch.equal(layer(x), other(x)) and other.weight.data_ptr() == layer.weight.data_ptr()
