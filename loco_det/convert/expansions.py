"""Blockwise expansions: conv, BN and ReLU on top of a stage ("CbE", arXiv 2302.01647), of ours and of blockwise_ssl."""

import re

import torch
from torch import nn

from pretrain.encoders import Encoder

from .sources.checkpoint_file import CheckpointFile
from .sources.choose import Choice
from .sources.own_code import filled, weights_of_ours


def expansions_of_ours(file: CheckpointFile, encoder: Encoder) -> dict[str, nn.Module]:
    """Those at the beginning of the decoders in one of our pretraining checkpoints (MODEL.DECODER.EXPANSION).

    Args:
        file: the checkpoint.
        encoder: whose stages the decoders may be on.

    Returns:
        dict: name of a stage -> its expansion, (B, C, H, W) -> (B, C', H, W).

    Raises:
        ValueError: if one is not a conv and BN of the right size.
    """
    weights, places = weights_of_ours(file), {name: f"decoders.{name}." for name in encoder.stage_names}
    if getattr(encoder, "prefix_tokens", None) is not None:  # the first module makes a map of tokens
        weights = {re.sub(r"^(decoders\.\w+\.)([12])\.", _one_less, name): value for name, value in weights.items()}
    return _expansions(weights, places, encoder)


def _one_less(match):
    return f"{match[1]}{int(match[2]) - 1}."


def expansions_of_blockwise(choice: Choice, encoder: Encoder) -> dict[str, nn.Module]:
    """``pool_conv_block_1`` to ``_4`` of blockwise Barlow Twins; args and returns as :func:`expansions_of_ours`.

    (model.py of github.com/shoaibahmed/blockwise_ssl)
    """
    _, found, _ = choice
    places = {name: f"{found.prefix}pool_conv_block_{i}." for i, name in enumerate(encoder.stage_names, 1)}
    return _expansions(found.weights, places, encoder)


def _expansions(weights, places, encoder):
    expansions = {}
    for (name, place), channels in zip(places.items(), encoder.channels, strict=True):
        parts = {n.removeprefix(place): value for n, value in weights.items() if n.startswith(place)}
        if "1.running_mean" in parts:  # else no expansion: in our decoders pooling, a conv block or a copied stage
            expansions[name] = _expansion(parts, channels)
    return expansions


def _expansion(parts, channels):
    """A decoder's or ``pool_conv_block``'s conv, BN and ReLU; what follows, pooling or an MLP, is left out.

    Args:
        parts: names, as in an ``nn.Sequential`` of conv, BN and so on -> tensors.
        channels: of the stage below.
    """
    parts = {name: value for name, value in parts.items() if re.match(r"[01]\.", name)}
    shape = parts["0.weight"].shape if "0.weight" in parts else ()
    if len(shape) != 4 or shape[1] != channels or shape[2] != shape[3]:
        raise ValueError(f"an expansion's conv is {tuple(shape)}, expected a square one of {channels} input channels")
    with torch.device("meta"):  # no random numbers
        conv = nn.Conv2d(channels, shape[0], shape[2], padding=shape[2] // 2, bias=False)  # published: 1x1, also 3x3
        module = nn.Sequential(conv, nn.BatchNorm2d(shape[0]), nn.ReLU())
    return filled(module, parts, "an expansion is not a conv and BN").float()
