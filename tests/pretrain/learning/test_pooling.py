"""Average pooling over a map and over cells against torch's."""

import pytest
import torch
from torch import nn

from pretrain.learning.decoders import Decoder
from pretrain.learning.pooling import GlobalAvgPool, LocalAvgPool


def test_global_average_pooling_is_torchs():
    """The mean, and a gradient that is a map in channels_last: not an expanded pixel, with which the CPU is slow."""
    x = torch.randn(3, 4, 5, 2, dtype=torch.double).to(memory_format=torch.channels_last).requires_grad_()
    mine, theirs = GlobalAvgPool()(x), nn.AdaptiveAvgPool2d(1)(x)
    torch.testing.assert_close(mine, theirs)
    gradient = torch.randn_like(mine)
    found = torch.autograd.grad(mine, x, gradient)[0]
    torch.testing.assert_close(found, torch.autograd.grad(theirs, x, gradient)[0])
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "grid"), [(256, (2, 4)), (512, (2, 2)), (1024, (1, 2)), (2048, (1, 1)), (32, (8, 8))]
)
def test_cells_give_2048_features(channels, grid):
    pool = LocalAvgPool(channels, 2048)
    assert (pool.rows, pool.columns) == grid
    x = torch.randn(2, channels, 8, 16, dtype=torch.double).requires_grad_()
    means = [[part.mean((2, 3)) for part in row.chunk(grid[1], 3)] for row in x.chunk(grid[0], 2)]
    expected = torch.stack([torch.stack(row, 2) for row in means], 2)
    torch.testing.assert_close(pool(x), expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((weights * y).sum(), x)[0] for y in (pool(x), expected)]
    torch.testing.assert_close(*gradients)


def test_local_pooling_in_a_decoder():
    decoder = Decoder(8, conv_blocks=0, pool_features=32, hidden_dim=16, out_dim=4)
    assert isinstance(decoder[0], LocalAvgPool) and decoder[2].weight.shape == (16, 32)
    x = torch.randn(4, 8, 6, 6)
    x_moved = x.roll(3, 2)  # the upper cells become the lower ones: the mean over the map would not notice
    assert not torch.allclose(decoder(x), decoder(x_moved), atol=1e-3)
    plain = Decoder(8, conv_blocks=0, pool_features=8, hidden_dim=16, out_dim=4)
    assert isinstance(plain[0], GlobalAvgPool) and plain[2].weight.shape == (16, 8)
    torch.testing.assert_close(plain(x), plain(x_moved))
    expanded = Decoder(8, conv_blocks=0, expansion=16, pool_features=32, hidden_dim=16, out_dim=4)
    assert (expanded[3].rows, expanded[3].columns) == (1, 2)  # the channels are those after the 1x1 conv


@pytest.mark.parametrize(("channels", "features"), [(3, 2048), (4096, 2048)])
def test_features_that_no_grid_gives(channels, features):
    with pytest.raises(ValueError, match=f"POOL_FEATURES 2048 is no multiple of a map's {channels} channels"):
        LocalAvgPool(channels, features)


def test_a_map_smaller_than_the_grid():
    with pytest.raises(ValueError, match=r"a map of 2 x 2 pixels has no 2 x 4 cells .*: a larger INPUT.CROP_SIZE"):
        LocalAvgPool(256, 2048)(torch.zeros(1, 256, 2, 2))
