"""Global average pooling against torch's."""

import torch
from torch import nn

from pretrain.learning.pooling import GlobalAvgPool


def test_global_average_pooling_is_torchs():
    """The mean, and a gradient that is a map in channels_last: not an expanded pixel, with which the CPU is slow."""
    x = torch.randn(3, 4, 5, 2, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    mine, theirs = GlobalAvgPool()(x), nn.AdaptiveAvgPool2d(1)(x)
    torch.testing.assert_close(mine, theirs)
    gradient = torch.randn_like(mine)
    found = torch.autograd.grad(mine, x, gradient)[0]
    torch.testing.assert_close(found, torch.autograd.grad(theirs, x, gradient)[0])
    assert found.is_contiguous(memory_format=torch.channels_last)
