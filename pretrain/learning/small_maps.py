"""Convolutions on maps of a few pixels, as the last stages have on small crops.

On the CPU oneDNN computes a weight's gradient as suits large maps: in bfloat16 it takes several times as long as the
forward pass. There one matrix product is faster.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

BFLOAT16_PIXELS, PIXELS = 9, 4  # of the output: up to here the product is faster (benchmarks/small_maps.py)


class SmallMapConv2d(nn.Conv2d):
    """An nn.Conv2d, with a faster weight gradient where its output has few pixels."""

    def forward(self, x):
        """
        Args:
            x: (B, C, H, W).

        Returns:
            Tensor: (B, C', H', W'), that of nn.Conv2d, as are its first derivatives; there are no second ones.
        """
        autocast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if x.dim() != 4 or x.device.type != "cpu" or (dtype != self.weight.dtype and not autocast):
            return super().forward(x)
        stride, padding, k = self.stride[0], self.padding[0], self.kernel_size[0]
        height, width = ((side + 2 * padding - k) // stride + 1 for side in x.shape[2:])
        if height * width > (BFLOAT16_PIXELS if dtype == torch.bfloat16 else PIXELS):
            return super().forward(x)
        x, weight = x.to(dtype), self.weight.to(dtype)
        y = F.conv2d(x, weight.detach(), None, stride, padding)
        # a zero that has the weight's gradient: where only the input's is asked for, autograd leaves this one out
        return y.add_(_Zero.apply(weight, x.detach(), y.shape, stride, padding))


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, x, shape, stride, padding):
        ctx.save_for_backward(weight, x)
        ctx.geometry = stride, padding
        return x.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        weight, x = ctx.saved_tensors
        return weight_gradient(x, weight, gradient, *ctx.geometry), None, None, None, None


def weight_gradient(x, weight, gradient, stride, padding):
    """d loss / d weight, (C', C, k, k): the sum over the output's pixels of gradient times patch."""
    out, channels, k, _ = weight.shape
    height, width = ((n - 1) * stride + 1 for n in gradient.shape[2:])
    x = F.pad(x.permute(0, 2, 3, 1), [0, 0, padding, padding, padding, padding])  # channels last: rows are copied whole
    shifts = [x[:, i : i + height : stride, j : j + width : stride] for i in range(k) for j in range(k)]
    patches = torch.cat(shifts, dim=3).flatten(0, 2)  # (B H' W', k k C)
    product = gradient.permute(0, 2, 3, 1).flatten(0, 2).T @ patches
    return product.view(out, k, k, channels).permute(0, 3, 1, 2)


def use_small_map_convs(module):
    """Replace the class of the plain convs in a module; names, weights and results stay."""
    for conv in module.modules():
        if type(conv) is not nn.Conv2d:
            continue
        # of the words that a padding may be, none begins with a letter twice
        square = all(pair[0] == pair[1] for pair in (conv.kernel_size, conv.stride, conv.padding))
        plain = conv.bias is None and conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        if square and plain:
            conv.__class__ = SmallMapConv2d
