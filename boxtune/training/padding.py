"""How much of the training batches was padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxtune.batching.packed import is_packed


class PaddingCount:
    """Counts the positions of batches, and those that hold padding. log_entry, run: (2,) both counts since the last log entry,
    and of the whole run."""

    def __init__(self) -> None:
        self.log_entry = torch.zeros(2, dtype=torch.long)
        self.run = torch.zeros(2, dtype=torch.long)

    def add(self, batch: dict[str, Any]) -> None:
        positions = batch["input_ids"].numel()
        tokens = positions if is_packed(batch) else int(batch["attention_mask"].sum())
        counts = torch.tensor([positions, positions - tokens])
        self.log_entry += counts
        self.run += counts

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """{"padding_share"} since the last call; empty without a batch. total: sums a tensor over the processes."""
        positions, padding = total(self.log_entry).tolist()
        self.log_entry.zero_()
        return {"padding_share": padding / positions} if positions else {}

    def describe(self, total: Callable[[Tensor], Tensor]) -> str:
        """The last line of a run."""
        positions, padding = total(self.run).tolist()
        share = f" ({padding / positions:.1%})" if positions else ""
        return f"padding: {padding:,} of {positions:,} token positions in training{share}"
