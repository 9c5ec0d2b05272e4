"""Several examples in one row without padding, with the same losses and gradients as in a padded batch.

transformers keeps the examples of a row apart if there is no attention mask, no cache, and `position_ids` has four rows. Row 0
holds the positions in the text, which begin again at 0 with each example: sdpa's and eager's block-diagonal masks and
FlashAttention's sequence lengths are derived from them. Rows 1 to 3 hold the m-RoPE positions of each example, as if it were
alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boxtune.batching.encoder import IGNORE_INDEX

# What only a padded batch has, or what the model needs only to compute positions.
_OF_PADDED_BATCHES = ("attention_mask", "mm_token_type_ids")
# (N, T) tensors that become (1, T), with the values that fill them when they are padded again.
_ROWS = {"input_ids": 0, "labels": IGNORE_INDEX, "teacher_tokens": False}


def pack(batch: dict[str, Any], merge_size: int) -> dict[str, Any]:
    """A right-padded training batch of N examples as one row of T tokens.

    input_ids, labels, teacher_tokens: (1, T). position_ids: (4, 1, T). `targets` point into this row. Everything else stays as
    it is: `head_targets` count positions from each example's own start, as `unpack` gives them back.
    """
    kept = batch["attention_mask"].bool()
    lengths = kept.sum(1)
    packed = {key: value for key, value in batch.items() if key not in _OF_PADDED_BATCHES}
    packed |= {key: batch[key][kept][None] for key in _ROWS if key in batch}
    grids = iter(batch["image_grid_thw"].tolist())
    is_image = [row[:length].bool() for row, length in zip(batch["mm_token_type_ids"], lengths, strict=True)]
    text = torch.cat([torch.arange(length) for length in lengths])
    rope = torch.cat([rope_positions(row, grids, merge_size) for row in is_image], dim=1)
    packed["position_ids"] = torch.cat([text[None], rope])[:, None]
    if "targets" in batch:
        starts = lengths.cumsum(0) - lengths
        moved = {key: _in_one_row(batch["targets"][key], starts) for key in ("digit_at", "decision_at")}
        packed["targets"] = batch["targets"] | moved
    return packed


def rope_positions(is_image: Tensor, grids: Iterator[list[int]], merge_size: int) -> Tensor:
    """(3, T): the time, row and column of each token of an example, which may hold several images.

    is_image: (T,) true at image tokens. grids: (1, rows, columns) of each image in patches; only the example's are taken.
    Text counts on in all three. An image starts where the text before it ends, and text goes on behind its longer side.
    """
    image_tokens = is_image.nonzero().flatten().tolist()
    parts, done, following = [], 0, 0
    while image_tokens:
        _, rows, columns = next(grids)
        rows, columns = rows // merge_size, columns // merge_size
        before = image_tokens[0] - done
        parts.append((torch.arange(before) + following).expand(3, -1))
        start = following + before
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        parts.append(torch.stack([torch.zeros_like(x), y, x]).flatten(1) + start)
        done, following = image_tokens[0] + rows * columns, start + max(rows, columns)
        image_tokens = image_tokens[rows * columns :]
    parts.append((torch.arange(len(is_image) - done) + following).expand(3, -1))
    return torch.cat(parts, dim=1)


def _in_one_row(at: Tensor, starts: Tensor) -> Tensor:
    """(P, 2) rows and positions of a padded batch as those of the packed row."""
    return torch.stack([torch.zeros_like(at[:, 0]), starts[at[:, 0]] + at[:, 1]], dim=1)


# ---- a packed batch ----------------------------------------------------------------------------------------------------------


def is_packed(batch: dict[str, Any]) -> bool:
    return "position_ids" in batch


def example_lengths(batch: dict[str, Any]) -> list[int]:
    """The number of tokens of each example of a packed batch."""
    [text] = batch["position_ids"][0]
    starts = (text == 0).nonzero().flatten().tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def unpack(values: Tensor, lengths: list[int], fill: float = 0) -> Tensor:
    """(N, longest, …): the (1, T, …) values of a packed batch as those of a right-padded one."""
    return pad_sequence(values[0].split(lengths), batch_first=True, padding_value=fill)


def as_padded(batch: dict[str, Any]) -> dict[str, Any]:
    """The tokens and labels of a batch with one row per example, for people to read. A padded batch is returned as it is."""
    if not is_packed(batch):
        return batch
    lengths = example_lengths(batch)
    rows = {key: unpack(batch[key], lengths, fill) for key, fill in _ROWS.items() if key in batch}
    return batch | rows | {"attention_mask": unpack(torch.ones_like(batch["input_ids"]), lengths)}
