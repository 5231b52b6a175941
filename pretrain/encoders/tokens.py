"""Tokens of vision transformers as maps."""

import math
from collections.abc import Sequence

import torch
from torch import nn


class TokenMap(nn.Module):
    """Tokens (B, prefix + H W, C) -> the map of the patches, (B, C, H, W). The memory is shared.

    Attributes:
        prefix: number of tokens at the beginning that belong to no patch: class and register tokens.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: torch.Tensor, sides: Sequence[int] | None = None) -> torch.Tensor:
        """
        Args:
            tokens: (B, prefix + H W, C), the patches row by row.
            sides: H and W; None: H = W, as of the square views of pretraining.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: if there are not H W patches.
        """
        patches = tokens[:, self.prefix :]
        count = patches.shape[1]
        height, width = sides or (math.isqrt(count),) * 2
        if height * width != count:
            expected = f"{height} x {width}" if sides else "a square, as of square images"
            raise ValueError(f"{count} tokens of patches are no map: expected {expected}")
        return patches.transpose(1, 2).unflatten(2, (height, width))

    def extra_repr(self) -> str:
        return f"prefix={self.prefix}"
