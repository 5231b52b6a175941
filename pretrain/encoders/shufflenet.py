"""ShuffleNet v2-50 (Ma, Zhang, Zheng, Sun 2018, arXiv 1807.11164, last table of the appendix)."""

from torch import nn
from torchvision.models.shufflenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

CHANNELS = (244, 488, 976, 1952)
UNITS = (3, 4, 6, 3)
HEAD = 2048  # channels of the 1x1 conv on top, which belongs to res5


def shufflenetv2_50() -> tuple[dict[str, nn.Sequential], tuple[int, ...], tuple[int, ...]]:
    """The stages res2 (with the stem) to res5 (with the last 1x1 conv).

    The table states a 3x3 conv with 64 channels and stride 2, a max-pool, 3, 4, 6 and 3 units with 244, 488, 976 and
    1952 channels at 56, 28, 14 and 7 pixels, a 1x1 conv with 2048 channels, and 2.3 GFLOPs (multiply-adds, 224 x 224
    pixels). Read as in the smaller models, where these channels are the output of a unit, half of them in each branch,
    that gives 2.30, or 2.32 with BN. Not stated is the first unit of res2, which must turn 64 channels into 244 without
    a stride: here it has the two branches of the units with stride 2 (2.37 if half of its input were passed on).

    Returns:
        tuple: stages (dict of ``nn.Sequential``), channels, strides.
    """
    stem = nn.Sequential(Conv2dNormActivation(3, 64, 3, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
    stages, below = {}, 64
    for k, (channels, units) in enumerate(zip(CHANNELS, UNITS, strict=True)):
        first = InvertedResidual(below, channels, stride=2)
        rest = [InvertedResidual(channels, channels, stride=1) for _ in range(units - 1)]
        stages[f"res{k + 2}"] = nn.Sequential(first, *rest)
        below = channels
    for module in stages["res2"][0].modules():  # the stem has reached stride 4 already
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    stages["res2"].insert(0, stem)
    stages["res5"].append(Conv2dNormActivation(below, HEAD, 1))
    return stages, (*CHANNELS[:-1], HEAD), (4, 8, 16, 32)
