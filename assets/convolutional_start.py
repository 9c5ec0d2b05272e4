"""Attention that begins as a convolution."""

import math

import torch

NEIGHBORS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # (x, y)


@torch.no_grad()
def start_as_convolution(tower, sharpness: float = 3.0) -> None:
    """Let the first four heads of each layer of a Qwen3-VL vision tower begin as a convolution over the direct neighbors.

    Each of them attends to the patch at one offset. The biases of q and k alone give the scores: under RoPE, the score of two
    constant vectors depends on the distance of their patches only. From random weights, a vision transformer learns late to
    look at neighbors, and needs far more images than a convolutional network. The other heads keep their random start.

    sharpness: how much higher, in natural logarithms, the score of that patch is than that of its direct neighbors.
    """
    frequencies = tower.rotary_pos_emb.inv_freq  # (F,) per axis; a head's D / heads = 4 F values are h, w, h, w
    contrast = (1 - torch.cos(frequencies)).sum()
    for block in tower.blocks:
        attention = block.attn
        scale = math.sqrt(sharpness / (contrast * attention.scaling))
        q, k, _ = attention.qkv.bias.view(3, attention.num_heads, attention.head_dim)
        for head, (right, down) in enumerate(NEIGHBORS):
            angles = torch.cat([down * frequencies, right * frequencies])
            q[head] = scale * torch.cat([angles.cos(), angles.sin()])
            k[head] = scale * torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
