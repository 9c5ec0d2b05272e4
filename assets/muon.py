"""Muon, an optimizer for the hidden matrices of a network.

torch.optim.Muon orthogonalizes in bfloat16, which a CPU without bfloat16 instructions emulates. That was measured to take about
twenty times as long as the same matrix products in float32. Here the dtype is a choice.
"""

from collections import defaultdict

import torch

# Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): five iterations of this quintic move
# singular values between 0 and 1 close to 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The (…, m, n) matrices with their singular values moved close to 1, by Newton-Schulz iteration in `dtype`."""
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    x = (wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


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
            # Matrices of one shape are orthogonalized together: on a GPU, launches take the time.
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                gradients = [parameter.grad for parameter in parameters]
                means = [self.mean_of(parameter) for parameter in parameters]
                torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(gradients, means, group["momentum"]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                size = -0.2 * group["lr"] * max(shape) ** 0.5
                torch._foreach_add_(parameters, orthogonalize(updates, self.dtype).unbind(), alpha=size)

    def mean_of(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The running mean of the parameter's gradients; zeros at first."""
        if not self.state[parameter]:
            self.state[parameter]["mean"] = torch.zeros_like(parameter)
        return self.state[parameter]["mean"]
