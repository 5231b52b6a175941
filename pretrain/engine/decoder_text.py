"""The decoder of a pretraining config in words: for a table's cell, and in full for a model card."""

from collections.abc import Mapping
from typing import Any


def decoder_text(keys: Mapping[str, Any], full: bool = False) -> str:
    """What lies between a unit and its loss, from the input on, as :class:`pretrain.decoders.Decoder` builds it.

    Args:
        keys: the MODEL.DECODER node of a config; older ones lack some keys, which then were not there.
        full: also with norms, strides and pooling.

    Returns:
        str: such as "1 conv block, downsampling, MLP 2048-128".
    """
    parts = [_copies(keys, full)] if keys.get("STAGES") else []
    parts.append(_blocks(keys, full))
    if keys.get("EXPANSION"):
        parts.append(f"1x1 conv to {keys['EXPANSION']} channels, BN, ReLU" if full else f"1x1 conv {keys['EXPANSION']}")
    if keys.get("POOL_FEATURES"):
        cells = f"average pooling over cells to {keys['POOL_FEATURES']} features"
        parts.append(cells if full else f"local pooling {keys['POOL_FEATURES']}")
    elif full:
        parts.append("global average pooling")
    layers = keys.get("MLP_LAYERS") or 2
    widths = [keys.get("HIDDEN_DIM")] * (layers - 1) + [keys.get("OUT_DIM")]
    mlp = f"MLP {'-'.join(map(str, widths))}"
    if full:
        end = "BN at its end" if keys.get("OUT_BN") else "no BN at its end"
        mlp += f" ({layers} layer{'s' * (layers > 1)}, {end})"
    return (" → " if full else ", ").join([*parts, mlp])


def _copies(keys: Mapping[str, Any], full: bool) -> str:
    """The copied stages, and how they are tied to the originals."""
    count, tie = keys["STAGES"], keys.get("TIE")
    which = "the next stage" if count == 1 else f"the next {count} stages" if count > 0 else "all stages above"
    tied = f"tied to the original by L2 x {tie:g}" if full and tie else f"tied {tie}"
    return f"copy of {which}" + (f", {tied}" if tie else "")


def _blocks(keys: Mapping[str, Any], full: bool) -> str:
    """The residual conv blocks, of which the first may downsample."""
    count = keys.get("CONV_BLOCKS") or 0
    if not count:
        return "no conv block"
    plural = "s" * (count != 1)
    if not full:
        return f"{count} conv block{plural}{', downsampling' if keys.get('DOWNSAMPLE') else ''}"
    stride = ", the first with stride 2" if count > 1 else " with stride 2 (downsampling)"
    return f"{count} residual conv block{plural}{stride if keys.get('DOWNSAMPLE') else ' of stride 1'}"
