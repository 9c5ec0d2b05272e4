"""Muon, an optimizer for the hidden matrices of a network.

torch.optim.Muon orthogonalizes in bfloat16, which a CPU without bfloat16 instructions emulates. That was measured to take about
twenty times as long as the same matrix products in float32. Here the dtype is a choice.
"""

import torch

# Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): five iterations of this quintic move
# singular values between 0 and 1 close to 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The (m, n) matrix with its singular values moved close to 1, by Newton-Schulz iteration in `dtype`."""
    a, b, c = QUINTIC
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = (wide / (wide.norm() + 1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum, scaled to the usual size of AdamW's updates (arXiv 2502.16982, equation 4)."""

    def __init__(
        self,
        params,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(mean, group["momentum"]), self.dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * group["lr"] * max(parameter.shape) ** 0.5)
