"""Noise on a stage's output, as in blockwise Barlow Twins (Siddiqui et al. 2023, arXiv 2302.01647)."""

import torch
from torch import Tensor


def add_noise(h: Tensor, share: float) -> Tensor:
    """Add Gaussian noise. As in the paper's code (shoaibahmed/blockwise_ssl, model.py), the gradient flows through the
    standard deviation, which is that of the images that this process sees at a time.

    Args:
        h: output of a stage, (2B, C, H, W).
        share: standard deviation of the noise, as a share of the standard deviation of the whole tensor ``h``.

    Returns:
        (2B, C, H, W).
    """
    batch, channels, *sides = h.shape
    # The CPU draws five times as fast in the order of the memory, which is channels_last.
    noise = torch.randn(batch, *sides, channels, dtype=h.dtype, device=h.device).movedim(-1, 1)
    return h + share * h.std() * noise
