"""How many bytes a layer keeps for its backward pass: counted on the CPU, in a layer of the real size without its weights."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

# Tokens or patches in the pass that is counted. The bytes are proportional to them: attention kernels keep no matrix of scores.
COUNTED = 64


@dataclass(frozen=True)
class LayerBytes:
    """Bytes for each token: `saved` by the layer for its backward pass, and `inputs`, all that checkpointing keeps of it."""

    saved: float
    inputs: float


def language_layer_bytes(layer: nn.Module, hidden_size: int, head_size: int, compute: torch.dtype) -> LayerBytes:
    """layer: a decoder layer on the meta device, with its adapters. compute: the dtype of mixed-precision training."""
    hidden = torch.zeros(1, COUNTED, hidden_size, dtype=compute, requires_grad=True)
    rotary = torch.zeros(1, COUNTED, head_size, dtype=compute)
    return _count(layer, hidden, compute, position_embeddings=(rotary, rotary), attention_mask=None)


def vision_block_bytes(block: nn.Module, hidden_size: int, head_size: int, compute: torch.dtype) -> LayerBytes:
    """block: a block of the vision tower on the meta device, with its adapters."""
    hidden = torch.zeros(COUNTED, hidden_size, dtype=compute, requires_grad=True)
    rotary = torch.zeros(COUNTED, head_size, dtype=compute)
    bounds = torch.tensor([0, COUNTED], dtype=torch.int32)
    return _count(block, hidden, compute, cu_seqlens=bounds, position_embeddings=(rotary, rotary))


def _count(layer: nn.Module, hidden: torch.Tensor, compute: torch.dtype, **inputs) -> LayerBytes:
    # The weights are not initialized, so their pages take no memory until a matrix product reads them.
    layer = copy.deepcopy(layer).to_empty(device="cpu").train()
    weights = {weight.untyped_storage().data_ptr() for weight in layer.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:  # views of one storage count once
            saved[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # so that no later tensor gets the same address
        return tensor

    kept: list[torch.Tensor] = []
    mixed: AbstractContextManager = nullcontext()
    if compute != torch.float32:
        mixed = torch.autocast("cpu", dtype=compute)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), mixed:
        layer(hidden, **inputs)
    return LayerBytes(sum(saved.values()) / COUNTED, hidden.untyped_storage().nbytes() / COUNTED)
