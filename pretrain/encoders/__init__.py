"""Image encoders as ordered lists of stages."""

from .base import BUILDERS, ENCODERS, STAGE_NAMES, Encoder, ResNetEncoder, StageEncoder, build_encoder
from .resnet import RESNETS, ResNetShape, resnet_shape
from .spec import EncoderSpec, NamedEncoder, is_own_code, parse_encoder

__all__ = [
    "BUILDERS",
    "ENCODERS",
    "RESNETS",
    "STAGE_NAMES",
    "Encoder",
    "EncoderSpec",
    "NamedEncoder",
    "ResNetEncoder",
    "ResNetShape",
    "StageEncoder",
    "build_encoder",
    "is_own_code",
    "parse_encoder",
    "resnet_shape",
]
