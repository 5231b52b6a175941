"""PResNet-50: LoCo's ResNet with six stages of about the same FLOPs and memory (Xiong, Ren, Urtasun 2020, Table 7)."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation

SIDES = (56, 36, 24, 16, 12, 8)  # of each stage's output for an image of 224 x 224 pixels
WIDTHS = (56, 96, 144, 256, 512, 1024)  # of the 3x3 convs
GROUPS = (1, 1, 1, 2, 16, 128)
BLOCKS = 3  # in every stage


def presnet50() -> tuple[dict[str, nn.Sequential], list[int], list[float], tuple[int, ...]]:
    """The stages res2 (with the stem) to res7, three residual blocks each.

    The paper's supplement gives sizes, widths and groups, "downsampling by bilinear interpolation", an ungrouped last
    1x1 conv in the first block of res5 to res7, and 4.16 GFLOPs (multiply-adds, 224 x 224 pixels). It leaves open where
    the interpolation stands, which convs are grouped, and what the shortcut of a first block is. Readings, all convs of
    the bottlenecks grouped but the one named, with fvcore's GFLOPs (BN, interpolation and a 1000-class classifier
    included), and with what they can save of the tensors kept for the backward pass: all over those of the largest
    stage (GIM; the paper measured 4.56x), and over those of the two largest neighbours (LoCo; 2.76x):

    ==========================================  =============  ======  =====  =====
    interpolation                               1x1 shortcut   GFLOPs  GIM    LoCo
    ==========================================  =============  ======  =====  =====
    of the first block's input                  ungrouped      3.78    5.04x  2.80x
    before the conv that has a ResNet's stride  ungrouped      3.82    5.19x  2.78x
    after the conv that has a ResNet's stride   ungrouped      4.16    5.15x  2.74x
    the same                                    grouped        3.27    5.15x  2.74x
    of the first block's output                 grouped        4.19    4.65x  2.53x
    ==========================================  =============  ======  =====  =====

    The third is built here: interpolation does what strides do in a ResNet. Convs alone are 4.13 GFLOPs.

    Returns:
        tuple: stages (dict of ``nn.Sequential``), channels, strides, groups.
    """
    stages, channels = {}, [32]
    for k, (width, groups) in enumerate(zip(WIDTHS, GROUPS, strict=True)):
        kind = BasicBlock if k < 2 else Bottleneck
        ratio = SIDES[k] / SIDES[k - 1] if k else None
        blocks = [_block(kind, channels[-1], width, groups, ratio, first=True)]
        channels.append(width * kind.expansion)
        blocks += [_block(kind, channels[-1], width, groups) for _ in range(BLOCKS - 1)]
        stages[f"res{k + 2}"] = nn.Sequential(*blocks)
    stem = nn.Sequential(Conv2dNormActivation(3, channels[0], 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    stages["res2"].insert(0, stem)
    return stages, channels[1:], [224 / side for side in SIDES], GROUPS


def _block(kind, in_channels, width, groups, ratio=None, first=False):
    """A residual block of torchvision; ``ratio``: output side / input side, None: equal."""
    out_channels = width * kind.expansion
    resize = [] if ratio is None else [Resize(ratio)]
    shortcut = None
    if first:  # interpolation and 1x1 conv commute: this order is the cheaper one
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        shortcut = nn.Sequential(*resize, conv, nn.BatchNorm2d(out_channels))
    block = kind(in_channels, width, downsample=shortcut, groups=groups, base_width=64 / groups)
    if kind is Bottleneck:  # torchvision's has groups in conv2 only
        block.conv1 = nn.Conv2d(in_channels, width, 1, groups=groups, bias=False)
        block.conv3 = nn.Conv2d(width, out_channels, 1, groups=1 if first else groups, bias=False)
    if resize:
        strided = "conv2" if kind is Bottleneck else "conv1"
        setattr(block, strided, nn.Sequential(getattr(block, strided), *resize))
    return block


class Resize(nn.Module):
    """Bilinear interpolation to ``ratio`` x the sides of the input, rounded half up.

    A block sees no image, so that the sizes are proportions of its own input and are rounded stage by stage: exactly
    ``SIDES`` for 224 pixels; 25, 16, 11, 7, 5, 3 for 97. One pixel stays one, since no ratio is below 1/2.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, about ratio * H, about ratio * W)."""
        size = [int(side * self.ratio + 0.5) for side in x.shape[2:]]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio:.4g}"
