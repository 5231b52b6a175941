"""Convolutions on maps of a few pixels, as the last stages have on small crops.

On the CPU oneDNN computes a weight's gradient as suits large maps: in bfloat16 it takes several times as long as the
forward pass. There one matrix product is faster; in float32 oneDNN's is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .tracing import is_traced

PIXELS = {torch.bfloat16: 9}  # of the output: up to here the product is faster (benchmarks/small_maps.py)


class SmallMapConv2d(nn.Conv2d):
    """An nn.Conv2d, with a faster weight gradient where its output has few pixels.

    It runs under torch.func.grad, but not under torch.func.vmap or in forward mode.
    """

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "SmallMapConv2d":
        """A conv with the parameters, the hooks and the settings of ``conv``: the same objects, no copies."""
        small = cls(conv.in_channels, conv.out_channels, 1, bias=False, device="meta")  # draws no random numbers
        vars(small).update(vars(conv))
        return small

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (B, C, H, W).

        Returns:
            (B, C', H', W'), that of nn.Conv2d, as are its first derivatives; there are no second ones.
        """
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if is_traced() or not self._is_faster(x, dtype) or (dtype != self.weight.dtype and not autocast):
            return super().forward(x)
        stride, padding = self.stride[0], int(self.padding[0])
        x, weight = x.to(dtype), self.weight.to(dtype)
        y = F.conv2d(x, weight.detach(), None, stride, padding)
        # The zero has the weight's gradient. Where only the input's is asked for, autograd leaves it out.
        return y.add_(_Zero.apply(weight, x.detach(), y.shape, stride, padding))

    def _is_faster(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether the output for ``x``, in ``dtype``, has so few pixels that the matrix product is faster."""
        if x.dim() != 4 or x.device.type != "cpu":
            return False
        stride, padding, k = self.stride[0], int(self.padding[0]), self.kernel_size[0]
        height, width = ((side + 2 * padding - k) // stride + 1 for side in x.shape[2:])
        return height * width <= PIXELS.get(dtype, 0)


class _Zero(torch.autograd.Function):
    """A zero of the output's shape, with the gradient of the weight."""

    @staticmethod
    def forward(weight: Tensor, x: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
        return x.new_zeros(()).expand(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.Size, int, int], output: Tensor) -> None:
        weight, x, _, *ctx.geometry = inputs
        ctx.save_for_backward(weight, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, x = ctx.saved_tensors
        return weight_gradient(x, weight, gradient, *ctx.geometry), None, None, None, None


def weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of a conv's weight: the sum over the output's pixels of gradient times patch.

    Args:
        x: input of the conv, (B, C, H, W).
        weight: (C', C, k, k).
        gradient: d loss / d output, (B, C', H', W').
        stride: of the conv, in pixels.
        padding: of the conv, in pixels.

    Returns:
        d loss / d weight, (C', C, k, k).
    """
    out, channels, k, _ = weight.shape
    height, width = ((n - 1) * stride + 1 for n in gradient.shape[2:])
    x = F.pad(x.permute(0, 2, 3, 1), [0, 0, padding, padding, padding, padding])  # channels last: rows are copied whole
    shifts = [x[:, i : i + height : stride, j : j + width : stride] for i in range(k) for j in range(k)]
    patches = torch.cat(shifts, dim=3).flatten(0, 2)  # (B H' W', k k C)
    product = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches
    return product.view(out, k, k, channels).permute(0, 3, 1, 2)


def use_small_map_convs(module: nn.Module) -> nn.Module:
    """Put a :class:`SmallMapConv2d` in the place of each plain conv: square, without bias, groups or dilation.

    Args:
        module: its children are replaced; names, parameters, hooks and results stay.

    Returns:
        ``module``, or the conv in its place if it is a plain conv itself.
    """
    replaced: dict[nn.Module, nn.Module] = {}  # a conv that has two names is replaced by one
    for path, conv in list(module.named_modules(remove_duplicate=False)):
        if isinstance(conv, nn.Conv2d) and _is_plain(conv):
            parent, _, name = path.rpartition(".")
            replaced.setdefault(conv, SmallMapConv2d.like(conv))
            if path:
                setattr(module.get_submodule(parent), name, replaced[conv])
    return replaced.get(module, module)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a conv is torch's own, of a form that :class:`SmallMapConv2d` computes."""
    if type(conv) is not nn.Conv2d or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return False
    square = all(pair[0] == pair[1] for pair in (conv.kernel_size, conv.stride, conv.padding))
    return square and conv.bias is None and conv.groups == 1 and conv.dilation == (1, 1)
