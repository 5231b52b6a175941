"""Image encoders as ordered lists of stages."""

from .base import BUILDERS, ENCODERS, ResNetEncoder, StageEncoder, build_encoder
from .resnet import RESNETS, ResNetShape, resnet_shape
from .spec import EncoderSpec, NamedEncoder, is_own_code, parse_encoder
from .stages import STAGE_NAMES, Encoder, features_of
from .tokens import TokenMap

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
    "TokenMap",
    "build_encoder",
    "features_of",
    "is_own_code",
    "parse_encoder",
    "resnet_shape",
]
