"""Average pooling over a whole map, with a gradient that suits the CPU, and over the cells of a grid."""

import math
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


class LocalAvgPool(nn.Module):
    """(B, C, H, W) -> (B, C, rows, columns), means over the cells of a grid, as torch's adaptive pooling cuts them.

    Attributes:
        rows, columns: of the grid, which is as square as it can be, and not higher than wide.
    """

    def __init__(self, channels: int, features: int) -> None:
        """
        Args:
            channels: C.
            features: C x rows x columns.

        Raises:
            ValueError: if ``features`` is not a multiple of ``channels``.
        """
        super().__init__()
        cells, rest = divmod(features, channels)
        if rest or not cells:
            raise ValueError(f"MODEL.DECODER.POOL_FEATURES {features} is no multiple of a map's {channels} channels")
        self.rows = next(rows for rows in range(math.isqrt(cells), 0, -1) if cells % rows == 0)
        self.columns = cells // self.rows

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, rows, columns).

        Raises:
            ValueError: if a map has fewer rows or columns of pixels than the grid.
        """
        height, width = x.shape[2:]
        if height < self.rows or width < self.columns:
            raise ValueError(
                f"a map of {height} x {width} pixels has no {self.rows} x {self.columns} cells "
                "(MODEL.DECODER.POOL_FEATURES): a larger INPUT.CROP_SIZE gives larger maps"
            )
        return F.adaptive_avg_pool2d(x, (self.rows, self.columns))

    def extra_repr(self) -> str:
        """The grid, for the module's text."""
        return f"{self.rows}, {self.columns}"


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
