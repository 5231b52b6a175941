"""Which encoder is meant: a name is parsed once, where text enters, and travels as one of two types from there on.

Text enters with a config's key, a command line or a checkpoint's metadata, and leaves with files and log lines (``str``
of both types is their name).
"""

from dataclasses import dataclass

from .resnet import ResNetShape, resnet_shape

TIMM = "timm:"  # before timm's names, "timm:convnext_tiny"


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder that is no ResNet.

    Attributes:
        name: of one of ``BUILDERS``, ``timm:`` and timm's name of a network, or the ``package.module.function`` of a
            user's own code. Nothing is looked up: it may be the name of nothing that is known here.
    """

    name: str

    @property
    def timm_name(self) -> str | None:
        """timm's name of the network; None if it is none of timm's."""
        return self.name.removeprefix(TIMM) if self.name.startswith(TIMM) else None

    @property
    def is_own_code(self) -> bool:
        """Whether building it calls a function of a user's."""
        return "." in self.name and self.timm_name is None

    def __str__(self) -> str:
        return self.name


EncoderSpec = ResNetShape | NamedEncoder


def parse_encoder(name: str) -> EncoderSpec:
    """Parse the name of an encoder.

    Args:
        name: as :func:`build_encoder` takes it.

    Returns:
        ResNetShape for every name that :func:`resnet_shape` knows, otherwise NamedEncoder.
    """
    return resnet_shape(name) or NamedEncoder(name)


def is_own_code(name: object) -> bool:
    """Whether a value, of a config for instance, names the ``package.module.function`` of a user.

    Building that encoder runs the user's code, which they ask for on a command line, and no file does.
    """
    if not isinstance(name, str):
        return False
    encoder = parse_encoder(name)
    return isinstance(encoder, NamedEncoder) and encoder.is_own_code
