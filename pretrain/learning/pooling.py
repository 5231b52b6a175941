"""Global average pooling, with a gradient that suits the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tracing import is_traced


class GlobalAvgPool(nn.Module):
    """(B, C, H, W) -> (B, C, 1, 1).

    The gradient of nn.AdaptiveAvgPool2d(1) is one pixel, expanded to a map. It slows the ReLU below on the CPU.
    This one runs under torch.func.grad, but not under torch.func.vmap or in forward mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, 1, 1), the mean over H and W.
        """
        return F.adaptive_avg_pool2d(x, 1) if is_traced() else _Mean.apply(x)


class _Mean(torch.autograd.Function):
    """The mean over a map; its gradient is a whole map in channels_last."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        *_, height, width = ctx.shape
        return (gradient / (height * width)).expand(ctx.shape).contiguous(memory_format=torch.channels_last)
