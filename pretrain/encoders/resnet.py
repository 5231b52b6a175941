"""ResNets (He et al. 2016) of any depth and width, from a name: torchvision's, and their wide and thin variants."""

import functools
import math
import re
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # variants: resnet_shape
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # Table 1
_RESNET = re.compile(r"resnet(?P<depth>\d+)(?:x(?P<times>\d*\.?\d+))?")
_WIDE = re.compile(r"wide_resnet(?P<depth>\d+)_2")
_RESNEXT = re.compile(r"resnext(?P<depth>\d+)_(?P<groups>\d+)x(?P<width>\d+)d")
_ANY = re.compile(r"resnet(?P<depth>\d+)_stem(?P<stem>\d+)_(?P<groups>\d+)x(?P<width>\d+)d_out(?P<out>\d+)")


class ResNetShape(NamedTuple):
    """What sets one ResNet apart from another; the numbers are those of Detectron2's ``MODEL.RESNETS``.

    Attributes:
        depth: 18, 34, 50, 101 or 152 (He et al. 2016, Table 1).
        stem: output channels of the stem (STEM_OUT_CHANNELS).
        groups: of the 3x3 convs in bottleneck blocks (NUM_GROUPS).
        width: of each of these groups in res2, in channels (WIDTH_PER_GROUP).
        out: output channels of res2 (RES2_OUT_CHANNELS).
        same: pad as TensorFlow's SAME does wherever there is a stride: with one pixel less above and on the left of
            images with even sides. Detectron2's ResNet cannot.
    """

    depth: int
    stem: int
    groups: int
    width: int
    out: int
    same: bool = False

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        """Number of blocks in res2 to res5."""
        return BLOCKS[self.depth]

    @property
    def bottleneck(self) -> bool:
        """Whether its blocks are bottlenecks (1x1, 3x3, 1x1) and not basic (3x3, 3x3)."""
        return self.depth >= 50

    @property
    def is_buildable(self) -> bool:
        """Whether there are such blocks: basic ones have no groups, and bottlenecks a quarter of their output."""
        if min(self[:5]) < 1:
            return False
        return self.out % 4 == 0 if self.bottleneck else (self.groups, self.width) == (1, self.out)

    @property
    def name(self) -> str:
        """The shortest name from which :func:`resnet_shape` makes it."""
        return _shortest_name(self)

    def __str__(self) -> str:
        return self.name


@functools.lru_cache  # also one text object for one shape, which a pickle with the name in two places holds once
def _shortest_name(shape):
    depth, stem, groups, width, out, same = shape
    suffix = "_same" if same else ""
    candidates = [f"resnet{depth}", f"resnet{depth}x{stem / 64:g}", f"wide_resnet{depth}_2"]
    candidates += [f"resnext{depth}_{groups}x{width}d"]
    for name in candidates:
        if resnet_shape(name + suffix) == shape:
            return name + suffix
    return f"resnet{depth}_stem{stem}_{groups}x{width}d_out{out}{suffix}"


def resnet_shape(name: str) -> ResNetShape | None:
    """Parse the name of a ResNet.

    ``resnet50``, ``wide_resnet50_2`` and ``resnext50_32x4d`` are torchvision's names, for any of the depths;
    ``resnet50x2`` and ``resnet18x0.5`` have all channels times that number, as in SimCLR (arXiv 2002.05709) and SwAV;
    ``resnet50_stem64_1x32d_out128`` spells everything out: stem, groups x width, output of res2. ``resnet50_same``
    pads as BYOL's did (arXiv 2006.07733).

    Args:
        name: any text.

    Returns:
        ResNetShape, or None if it is not the name of a ResNet.
    """
    if name.endswith("_same"):
        shape = resnet_shape(name.removesuffix("_same"))
        return shape._replace(same=True) if shape and not shape.same else None
    for pattern in (_RESNET, _WIDE, _RESNEXT, _ANY):
        if match := pattern.fullmatch(name):
            break
    else:
        return None
    times = float(match["times"] or 1) if pattern is _RESNET else 1
    numbers = {key: int(value) for key, value in match.groupdict().items() if key != "times"}
    if numbers["depth"] not in BLOCKS:
        return None
    basic = numbers["depth"] < 50
    shape = ResNetShape(**{"stem": 64, "groups": 1, "width": 64, "out": 64 if basic else 256, **numbers})  # type: ignore[arg-type]
    if pattern is _WIDE:
        shape = shape._replace(width=128)
    if times != 1:
        if any((channels * times) % 1 for channels in (shape.stem, shape.width, shape.out)):
            return None
        stem, width, out = (int(channels * times) for channels in (shape.stem, shape.width, shape.out))
        shape = shape._replace(stem=stem, width=width, out=out)
    return shape if shape.is_buildable else None


def resnet(shape: ResNetShape) -> dict[str, nn.Module]:
    """Build a ResNet without its classifier, of torchvision's blocks and with its names.

    It is assembled here because torchvision's own class has its stem and the width of its first stage fixed.

    Args:
        shape: what to build, see :attr:`ResNetShape.is_buildable`.

    Returns:
        dict: the children in order: conv1, bn1, relu, maxpool, layer1 to layer4.
    """
    children: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, shape.stem, 7, stride=2, padding=3, bias=False),
        "bn1": nn.BatchNorm2d(shape.stem),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, stride=2, padding=1),
    }
    below = shape.stem
    for k, count in enumerate(shape.blocks):
        out = shape.out * 2**k
        blocks = [_block(shape, below, out, stride=2 if k else 1)]
        blocks += [_block(shape, out, out) for _ in range(count - 1)]
        children[f"layer{k + 1}"] = nn.Sequential(*blocks)
        below = out
    if shape.same:
        children["conv1"] = SameConv2d.like(cast(nn.Conv2d, children["conv1"]))
        children["maxpool"] = SameMaxPool2d(3, stride=2)
    return children


def _block(shape, in_channels, out_channels, stride=1):
    """A residual block, with a projection in its shortcut where input and output have different sizes."""
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    if shape.bottleneck:
        # torchvision's words for the width of the 3x3 conv: groups * int(planes * base_width / 64), so nothing below it
        planes, base_width = out_channels // 4, 256 * shape.width / shape.out * (1 + 1e-9)
        block = Bottleneck(in_channels, planes, stride, shortcut, groups=shape.groups, base_width=base_width)
    else:
        block = BasicBlock(in_channels, out_channels, stride, shortcut)
    if shape.same and stride != 1:
        strided = "conv2" if shape.bottleneck else "conv1"
        setattr(block, strided, SameConv2d.like(getattr(block, strided)))
    return block


class SameConv2d(nn.Conv2d):
    """A conv padded as in TensorFlow's SAME; its own ``padding`` is not used."""

    @classmethod
    def like(cls, conv: nn.Conv2d) -> "SameConv2d":
        """A conv of the same sizes, without bias, that takes over the weight of ``conv``."""
        sizes: dict[str, Any] = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
        options: dict[str, Any] = {"groups": conv.groups, "bias": False, "device": "meta"}  # draws no random numbers
        same = cls(conv.in_channels, conv.out_channels, **sizes, **options)
        same.weight = conv.weight
        return same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        x = _pad_same(x, self.kernel_size, self.stride, 0.0)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SameMaxPool2d(nn.MaxPool2d):
    """A max-pool padded as in TensorFlow's SAME."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return super().forward(_pad_same(x, (self.kernel_size,) * 2, (self.stride,) * 2, -math.inf))


def _pad_same(x, kernel, stride, value):
    """Pad (B, C, H, W) so that the output has ceil(side / stride) pixels, an odd one going below or to the right."""
    pads = []
    for side, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(0, (math.ceil(side / s) - 1) * s + k - side)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)
