"""Qwen3-VL's vision tower, faster on a CPU: the images of a batch go through its layers together if they have the same size."""

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionBlock,
    Qwen3VLVisionModel,
)
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids


class BatchedTower(Qwen3VLVisionModel):
    """The same parameters and results as Qwen3VLVisionModel, which computes the attention of each image separately.

    Scores and probabilities are explicit matrices: in bfloat16, CPUs with AMX multiply these several times as fast as the
    fused attention.
    """

    def forward(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs):
        if bool((grid_thw != grid_thw[0]).any()):
            return super().forward(hidden_states, grid_thw, **kwargs)
        one = grid_thw[:1].cpu()  # small index computations: on a GPU, launching them takes longer
        device = hidden_states.device
        indices, weights = get_vision_interpolation_indices_and_weights(
            one,
            num_grid_per_side=self.num_grid_per_side,
            mode=self.interpolation_mode,
            align_corners=self.interpolation_align_corners,
            spatial_merge_size=self.spatial_merge_size,
        )
        indices, weights = indices.to(device), weights.to(device)
        places = (self.pos_embed(indices) * weights[:, :, None]).sum(1)  # (N, D) for the N patches of one image
        x = self.patch_embed(hidden_states)
        x = x.view(len(grid_thw), -1, x.shape[-1]) + places.to(x.dtype)  # (B, N, D)
        cos, sin = self.rotary_pos_emb(x, get_vision_position_ids(one, self.spatial_merge_size).to(device))
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        deep = []
        for i, block in enumerate(self.blocks):
            x = x + attend(block, block.norm1(x), cos, sin)
            x = x + block.mlp(block.norm2(x))
            if i in self.deepstack_visual_indexes:
                merger = self.deepstack_merger_list[self.deepstack_visual_indexes.index(i)]
                deep.append(merger(x.flatten(0, 1)))
        x = x.flatten(0, 1)
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=x, pooler_output=self.merger(x), deepstack_features=deep
        )


def attend(block: Qwen3VLVisionBlock, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(B, N, D) → (B, N, D). cos, sin: (N, D / heads)."""
    attention = block.attn
    qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    qk, v = qkv[:2], qkv[2]  # (2, B, heads, N, D / heads)
    first, second = qk.chunk(2, dim=-1)
    q, k = qk * cos + torch.cat([-second, first], dim=-1) * sin
    shares = (q * attention.scaling @ k.transpose(-1, -2)).softmax(dim=-1)
    return attention.proj((shares.to(v.dtype) @ v).transpose(1, 2).flatten(2))


def add_batched_tower(model) -> None:
    """Replace the vision tower of a Qwen3-VL by a BatchedTower with the same weights."""
    tower = BatchedTower(model.config.vision_config).to(model.dtype)
    tower.load_state_dict(model.model.visual.state_dict())
    model.model.visual = tower.train(model.training)
