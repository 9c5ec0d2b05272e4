"""Several model objects with the same weights in memory."""

import copy
import itertools
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def share_weights(model: M) -> M:
    """Another model whose parameters and buffers are those of `model`. Each thread needs one: while a Qwen-VL model generates, it
    keeps `rope_deltas`, which depend on its batch, in the module."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
