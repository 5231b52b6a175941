"""A network of timm by its name, in the place that an encoder of pretraining has in a Source."""

from typing import NamedTuple


class TimmNetwork(NamedTuple):
    """A network of timm.

    Attributes:
        name: timm's, without a tag of weights.
        has_norm: whether the norm after a plain ViT's last block is among its weights.
    """

    name: str
    has_norm: bool = False

    def __str__(self) -> str:
        return self.name
