"""timm's networks by name, without classifier, for images of any size."""

import difflib
import functools
import math
import re
from dataclasses import dataclass

import timm
import torch
from torch import nn

from .beit import take_any_size
from .swin import pad_before_shift

# What timm calls it when a network takes images of any size: plain ViTs, and Swin. Others do so anyhow, or never
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False}
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")  # Python's words
STRIDES = (4, 8, 16, 32)  # of res2 to res5
PROBE = (256, 320)  # height and width that are multiples of 32 and no network's own
LAST = "last_feat"  # name of a plain ViT's map, as in Detectron2's ViTDet


@dataclass(frozen=True)
class Level:
    """A map that a network gives out.

    Attributes:
        name: res2 to res5 for strides 4 to 32 of a hierarchical network, last_feat for a plain one.
        index: which of the network's intermediates it is.
        channels: of the map.
        stride: pixels of the image for a step in the map.
        module: name of the network's module whose output it is, as timm has it: ``stages.0``.
    """

    name: str
    index: int
    channels: int
    stride: int
    module: str


def build_network(name: str, drop_path: float = 0.0, final_norm: bool = False) -> nn.Module:
    """Build a network of timm, with random weights and timm's own names of parameters.

    The classifier is left out, and so is what comes after the last map of :func:`levels_of`.

    Args:
        name: timm's name, with or without the tag of weights (``vit_small_patch16_224.dino``), which are not loaded.
        drop_path: rate of stochastic depth in the last block; it grows from 0 in the first one.
        final_norm: whether the norm after the last block stays, for use by the last map: plain ViTs only.

    Raises:
        ValueError: if timm has no such network, or it has no feature maps, no stochastic depth or no final norm where
            they are asked for, or it cannot take images of any size.
    """
    levels = levels_of(name)
    network = _create(name, drop_path)
    has_norm = not isinstance(getattr(network, "norm", None), nn.Identity | None)
    if final_norm and not (is_plain(levels) and has_norm):
        raise ValueError(f"MODEL.TIMM.FINAL_NORM True: {name} has no norm after its last block")
    if hasattr(network, "prune_intermediate_layers"):
        network.prune_intermediate_layers([levels[-1].index], prune_norm=not final_norm)
    return network


@functools.cache
def levels_of(name: str) -> tuple[Level, ...]:
    """The maps that a network of timm gives out, from the finest one; of a plain ViT the last block's alone.

    They are found by a forward pass without data, which takes no time and no memory.

    Raises:
        ValueError: as :func:`build_network`.
    """
    _refuse_unknown(name)
    with torch.device("meta"):
        network = _create(name).eval()
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"MODEL.TIMM.NAME {name}: this network of timm gives out no feature maps")
    try:
        with torch.no_grad():
            maps = run(network.to("meta"), torch.empty(1, 3, *PROBE, device="meta"))
    except Exception as error:  # each network has its own kind
        raise ValueError(
            f"MODEL.TIMM.NAME {name}: this network cannot take images of {PROBE[0]} x {PROBE[1]} pixels, and a "
            f"detector's have any size: {' '.join(str(error).split())[:120] or type(error).__name__}"
        ) from None
    levels = _levels(network, maps)
    if not levels:
        raise ValueError(f"MODEL.TIMM.NAME {name}: its feature maps have neither strides of 4 to 32 nor a single one")
    return levels


def is_plain(levels: tuple[Level, ...]) -> bool:
    """Whether a network is a plain one: one stride from its first block to its last."""
    return levels[0].name == LAST


def run(
    network: nn.Module, x: torch.Tensor, indices: list[int] | None = None, norm: bool = False
) -> list[torch.Tensor]:
    """timm's ``forward_intermediates``: the maps of the blocks or stages ``indices``; None: all of them.

    Args:
        network: of timm.
        x: (B, 3, H, W).
        indices: in rising order; what comes after the last one is not computed.
        norm: whether the network's final norm is applied to them.

    Returns:
        list: of (B, channels, height, width).
    """
    return network.forward_intermediates(  # type: ignore[operator]
        x, indices=indices, norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )


def _levels(network, maps):
    """The levels whose maps have the size that their stride says."""
    infos = getattr(network.feature_info, "info", network.feature_info)
    if len(infos) != len(maps):
        return ()
    found = {}
    for index, (info, features) in enumerate(zip(infos, maps, strict=True)):
        stride = int(info["reduction"])
        if tuple(features.shape[1:]) == (info["num_chs"], *(math.ceil(side / stride) for side in PROBE)):
            found[stride] = Level(f"res{stride.bit_length() - 1}", index, info["num_chs"], stride, info["module"])
    if len(infos) > 1 and {int(info["reduction"]) for info in infos} == set(found) and len(found) == 1:
        level = next(iter(found.values()))
        return (Level(LAST, level.index, level.channels, level.stride, level.module),)
    return tuple(found[stride] for stride in STRIDES if stride in found)


def _refuse_unknown(name):
    """ValueError if timm has no network of this name; no name is looked up on a network."""
    if ":" not in name and timm.is_model(name):
        return
    near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has them all"
    raise ValueError(f"MODEL.TIMM.NAME {name!r}: timm has no such network: {hint}")


def _create(name, drop_path=0.0):
    """The network with all of its blocks, no classifier, and images of any size where timm knows how."""
    options = {**ANY_SIZE, "drop_path_rate": drop_path}
    while True:
        try:
            network = timm.create_model(name, pretrained=False, num_classes=0, **options)
        except TypeError as error:  # of an option that this kind of network does not have
            unknown = UNEXPECTED.search(str(error))
            if not unknown or unknown[1] not in options:
                raise
            if options.pop(unknown[1]) == drop_path > 0:
                raise ValueError(
                    f"MODEL.TIMM.DROP_PATH {drop_path}: {name} has no stochastic depth, set it to 0"
                ) from None
        except RuntimeError as error:  # of a tag that timm does not have
            raise ValueError(f"MODEL.TIMM.NAME {name}: {' '.join(str(error).split())}") from None
        else:
            pad_before_shift(network)
            take_any_size(network)
            return network
