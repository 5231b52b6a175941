"""What a local loss looks through: conv blocks, global average pooling and an MLP. Thrown away after pretraining."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck


def _conv_block(channels, stride, bottleneck):
    """One residual block that keeps the channel count (the paper states no width) and divides H, W by ``stride``."""
    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
    if bottleneck:
        return Bottleneck(channels, channels // Bottleneck.expansion, stride, shortcut)
    return BasicBlock(channels, channels, stride, shortcut)


class Decoder(nn.Sequential):
    """Features of a unit's top stage to embeddings: (B, C, H, W) -> (B, out_dim).

    LoCo (Sec. 4.2, Table 4) puts one residual conv block with downsampling before SimCLR's head of global average
    pooling and a two-layer MLP; with no conv block it is the head of SimCLR and of the paper's GIM. As in SimCLR's code
    (model_util.py) neither linear layer has a bias, and BN without offset ends the head.
    """

    def __init__(
        self, channels, *, conv_blocks=1, downsample=True, bottleneck=True, hidden_dim=2048, out_dim=128, out_bn=True
    ):
        """
        Args:
            channels: C, channels of the features.
            conv_blocks: number of residual conv blocks before the pooling.
            downsample: whether the first conv block has stride 2.
            bottleneck: bottleneck blocks (1x1, 3x3, 1x1) as in ResNet-50, or basic ones (3x3, 3x3) as in ResNet-18.
            hidden_dim: width of the MLP's hidden layer.
            out_dim: dimension of the embedding.
            out_bn: whether BN ends the head; without it the last linear layer has a bias.
        """
        blocks = [_conv_block(channels, 2 if downsample and i == 0 else 1, bottleneck) for i in range(conv_blocks)]
        super().__init__(
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, hidden_dim, bias=False),  # BN follows: a bias would do nothing
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim, bias=not out_bn),
        )
        if out_bn:
            self.append(nn.BatchNorm1d(out_dim))
            self[-1].bias.requires_grad_(False)  # stays 0
