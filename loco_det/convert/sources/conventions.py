"""What a network expects of its images, and where its strides are."""

from typing import NamedTuple

IMAGENET_MEAN = (123.675, 116.280, 103.530)  # RGB, of pixels from 0 to 255
IMAGENET_STD = (58.395, 57.120, 57.375)


class Conventions(NamedTuple):
    """What a network expects of its surroundings, in the words of Detectron2's config; shapes do not show it.

    Attributes:
        format: order of the colour channels (INPUT.FORMAT).
        mean, std: of the pixels, from 0 to 255 and in that order (MODEL.PIXEL_MEAN, MODEL.PIXEL_STD).
        stride_in_1x1: whether bottlenecks have their stride in the first 1x1 conv (MODEL.RESNETS.STRIDE_IN_1X1).
    """

    format: str = "RGB"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    stride_in_1x1: bool = False


ZERO_TO_ONE = Conventions(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))  # pixels from 0 to 1, as they are
SWAV = Conventions(std=(58.140, 57.120, 57.375))  # 0.228 for red, in their multicropdataset.py

Pixels = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of RGB pixels from 0 to 255
