"""Image encoders as ordered lists of stages."""

from .base import BUILDERS, ENCODERS, STAGE_NAMES, Encoder, ResNetEncoder, StageEncoder, build_encoder, is_own_code
from .resnet import RESNETS, ResNetShape, resnet_shape

__all__ = [
    "BUILDERS",
    "ENCODERS",
    "RESNETS",
    "STAGE_NAMES",
    "Encoder",
    "ResNetEncoder",
    "ResNetShape",
    "StageEncoder",
    "build_encoder",
    "is_own_code",
    "resnet_shape",
]
