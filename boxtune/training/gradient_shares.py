"""How much each loss term contributes to a step: its share of the gradient norms at the last hidden states."""

from collections.abc import Callable

import torch
from torch import Tensor


class GradientShares:
    """Sums the squared norms of each term's gradient until they are logged.

    All terms meet at the last hidden states, so no layer needs an extra backward pass. Micro-batches and processes have separate
    states, so the squared norms add up.
    """

    def __init__(self):
        self.squares: dict[str, Tensor] = {}

    def record(self, losses: dict[str, Tensor], hidden: Tensor) -> None:
        """Add the gradients of `losses` at `hidden`, the last hidden states."""
        for name, loss in losses.items():
            square = torch.autograd.grad(loss, hidden, retain_graph=True)[0].float().square().sum()
            self.squares[name] = self.squares.get(name, 0.0) + square

    def take(self, reduce: Callable[[Tensor, str], Tensor]) -> dict[str, float]:
        """{"grad_share/NAME": fraction} since the last call. `reduce` sums over the processes; all of them must call this."""
        if not self.squares:
            return {}
        norms = reduce(torch.stack(list(self.squares.values())), "sum").sqrt()
        shares = norms / norms.sum().clamp(min=1e-30)
        names, self.squares = list(self.squares), {}
        return {f"grad_share/{name}": share for name, share in zip(names, shares.tolist(), strict=True)}
