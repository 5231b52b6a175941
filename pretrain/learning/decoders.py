"""The decoders between a unit's top and its loss: conv blocks, pooling and an MLP. Thrown away after pretraining."""

from collections.abc import Iterable

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..encoders import TokenMap
from .pooling import GlobalAvgPool, LocalAvgPool


def _conv_block(channels: int, stride: int, bottleneck: bool, groups: int) -> nn.Module:
    """One residual block that keeps the channel count (the paper states no width) and divides H, W by ``stride``."""
    shortcut = None
    if stride != 1:
        conv = nn.Conv2d(channels, channels, 1, stride, groups=groups, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))
    if not bottleneck:
        return BasicBlock(channels, channels, stride, shortcut)
    width = channels // Bottleneck.expansion
    block = Bottleneck(channels, width, stride, shortcut, groups=groups, base_width=64 / groups)
    if groups > 1:  # torchvision's has groups in the 3x3 conv only
        block.conv1 = nn.Conv2d(channels, width, 1, groups=groups, bias=False)
        block.conv3 = nn.Conv2d(width, channels, 1, groups=groups, bias=False)
    return block


class Decoder(nn.Sequential):
    """Features of a unit's top to embeddings: (B, C, H, W), or tokens (B, N, C), -> (B, out_dim).

    In this order, everything but the pooling and the MLP being optional: copies of the encoder's next stages (LoCo,
    Table 4), the map of a transformer's tokens, residual conv blocks, of which LoCo has one with downsampling (Sec.
    4.2), a 1x1 conv with BN and ReLU ("CbE", conv-based expansion of blockwise Barlow Twins, arXiv 2302.01647), average
    pooling over the whole map ("GSP", global spatial pooling) or over the cells of a grid ("LSP", local), MLP. Without
    the options it is the head of SimCLR and of the LoCo paper's GIM. As in SimCLR's code (model_util.py) no linear
    layer before a BN has a bias, and BN without offset may end the head.
    """

    def __init__(
        self,
        channels: int,
        *,
        stages: Iterable[nn.Module] = (),
        prefix_tokens: int | None = None,
        conv_blocks: int = 1,
        downsample: bool = True,
        bottleneck: bool = True,
        groups: int = 1,
        expansion: int = 0,
        pool_features: int = 0,
        mlp_layers: int = 2,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        out_bn: bool = True,
    ) -> None:
        """
        Args:
            channels: C of the features; with ``stages``, C of the output of the last of them.
            stages: copies of the encoder's next stages.
            prefix_tokens: those of the encoder (:class:`pretrain.encoders.Encoder`); None: its stages pass maps.
            conv_blocks: number of residual conv blocks before the pooling.
            downsample: whether the first conv block has stride 2.
            bottleneck: bottleneck blocks (1x1, 3x3, 1x1) as in ResNet-50, or basic ones (3x3, 3x3) as in ResNet-18.
            groups: of the convs of bottleneck blocks, as in PResNet's upper stages.
            expansion: output channels of the 1x1 conv; 0: none.
            pool_features: numbers that the pooling keeps of a map, a multiple of its channels: see
                :class:`LocalAvgPool`. 0: one a channel, the mean over the map.
            mlp_layers: number of linear layers, at least 1.
            hidden_dim: width of the MLP's hidden layers.
            out_dim: dimension of the embedding.
            out_bn: whether BN ends the head; without it the last linear layer has a bias.

        Raises:
            ValueError: if ``pool_features`` is not a multiple of the channels.
        """
        super().__init__(*stages)
        if prefix_tokens is not None:
            self.append(TokenMap(prefix_tokens))
        for i in range(conv_blocks):
            self.append(_conv_block(channels, 2 if downsample and i == 0 else 1, bottleneck, groups))
        if expansion:
            self.append(nn.Conv2d(channels, expansion, 1, bias=False))
            self.extend([nn.BatchNorm2d(expansion), nn.ReLU(inplace=True)])
            channels = expansion
        several = pool_features and pool_features != channels
        self.extend([LocalAvgPool(channels, pool_features) if several else GlobalAvgPool(), nn.Flatten()])
        channels = pool_features or channels
        for _ in range(mlp_layers - 1):
            self.append(nn.Linear(channels, hidden_dim, bias=False))
            self.extend([nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True)])
            channels = hidden_dim
        self.append(nn.Linear(channels, out_dim, bias=not out_bn))
        if out_bn:
            self.append(nn.BatchNorm1d(out_dim))
            self[-1].bias.requires_grad_(False)  # stays 0
