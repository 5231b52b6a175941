"""Noise on a stage's output, as in blockwise Barlow Twins (Siddiqui et al. 2023, arXiv 2302.01647)."""

import torch
from torch import Tensor


def add_noise(h: Tensor, share: float) -> Tensor:
    """Add Gaussian noise. As in the paper's code (shoaibahmed/blockwise_ssl, model.py), the gradient flows through the
    standard deviation, which is that of the images that this process sees at a time.

    Args:
        h: output of a stage, (2B, C, H, W); or tokens, (2B, N, C), to all of which it is added.
        share: standard deviation of the noise, as a share of the standard deviation of the whole tensor ``h``.

    Returns:
        As ``h``.
    """
    # The CPU draws five times as fast in the order of the memory, which is channels_last for maps.
    shape = h.shape if h.dim() == 3 else h.movedim(1, -1).shape
    noise = torch.randn(shape, dtype=h.dtype, device=h.device)
    noise = noise if h.dim() == 3 else noise.movedim(-1, 1)
    return h + share * h.std() * noise
