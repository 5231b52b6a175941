"""Encoders as ordered lists of stages: the unit of locality in LoCo, Greedy InfoMax and their relatives."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from .tokens import TokenMap

STAGE_NAMES = ("res2", "res3", "res4", "res5")  # Detectron2's names; "res2" includes the stem, as in the LoCo paper


class Encoder(nn.Module):
    """What pretraining asks of a network. Your own need not derive from it, if it has the same attributes.

    Attributes:
        stage_names: names of the stages, from the image upwards; tuple of str.
        channels: output channels of each stage.
        strides: output stride of each stage, in pixels of the image; may be a fraction.
        stages: one ``nn.Sequential`` of blocks for each stage. A block maps a tensor (B, C_in, H, W) to a tensor
            (B, C_out, H', W') and leaves its input as it was, because blocks are what is shared between units and
            what may run a second time in the backward pass. It must be right after a block was replaced by one with
            SyncBatchNorm: a property that reads the children is.
        groups: of the convs in each stage's bottleneck blocks, which decoders follow; optional, all 1.
        prefix_tokens: optional, None: blocks pass maps. A number: they pass tokens (B, prefix_tokens + H W, C), the
            class and register tokens first, of which decoders and readouts see the map of the others (tokens.py).
    """

    stage_names: tuple[str, ...]
    channels: tuple[int, ...]
    strides: tuple[float, ...]
    prefix_tokens: int | None = None

    @property
    def stages(self) -> Sequence[nn.Sequential]:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            x: images, (B, 3, H, W), normalised.

        Returns:
            dict: stage name -> features, (B, channels, about H / stride, about W / stride).
        """
        return features_of(self, x)


def features_of(encoder: Encoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of all stages of an encoder, which need not derive from :class:`Encoder`.

    Args:
        encoder: whose stages run.
        x: images, (B, 3, H, W), normalised.

    Returns:
        As :meth:`Encoder.forward`.

    Raises:
        ValueError: if a stage passes tokens, and not one for each patch of ``stride`` x ``stride`` pixels.
    """
    features, prefix, sides = {}, getattr(encoder, "prefix_tokens", None), x.shape[2:]
    for index, (name, stage) in enumerate(zip(encoder.stage_names, encoder.stages, strict=True)):
        x = features[name] = stage(x)
        if prefix is not None:
            grid = [math.ceil(side / encoder.strides[index]) for side in sides]
            features[name] = TokenMap(prefix)(x, grid)
    return features
