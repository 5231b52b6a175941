"""The order of a network's parameters from its input to its maps: what FREEZE_AT freezes, and layer-wise decay."""

import re

from timm.models import convnext, group_parameters
from torch import nn

from .network import is_plain, levels_of


def frozen_parameters(name: str, network: nn.Module, freeze_at: int) -> set[str]:
    """The names of the parameters that MODEL.BACKBONE.FREEZE_AT freezes, as :class:`TimmBackbone` says it.

    Args:
        name: timm's name of the network.
        network: of :func:`build_network`.
        freeze_at: the number of frozen parts: the stem, and then stages or blocks.
    """
    levels = levels_of(name)
    everything = levels[-1].index + 2 if is_plain(levels) else 5  # the stem and all blocks
    if freeze_at <= 0 or freeze_at >= everything:
        return {key for key, _ in network.named_parameters()} if freeze_at > 0 else set()
    places = _places(network, coarse=True)
    if freeze_at == 1 or is_plain(levels):
        return {key for key, place in places.items() if place < freeze_at}
    below = [level for level in levels if int(level.name.removeprefix("res")) <= freeze_at]
    ends = [place for key, place in places.items() if below and key.startswith(below[-1].module + ".")]
    return {key for key, place in places.items() if place <= max(ends, default=0)}


def decay_factors(network: nn.Module, decay: float) -> dict[str, float]:
    """The factors of the learning rate of a network's parameters: layer-wise decay.

    The stem has ``decay ** (L + 1)``, layer l of L ``decay ** (L + 1 - l)``; what comes after the network has 1. Layers
    are timm's: the blocks of a ViT, as in ViTDet (its class token is in the stem here, as in BEiT), and those of Swin
    and others. ConvNeXt's are those of its own recipe for detection, three blocks each in the third stage
    (object_detection/mmcv_custom/layer_decay_optimizer_constructor.py of facebookresearch/ConvNeXt).

    Args:
        network: of :func:`build_network`.
        decay: SOLVER.LAYER_DECAY, 0 to 1.

    Returns:
        dict: name of a parameter of the network -> its factor.
    """
    if isinstance(network, convnext.ConvNeXt):
        places = _convnext_places(network)
    else:
        places = _places(network, coarse=False)
    last = max(places.values())
    return {name: decay ** (last + 1 - place) for name, place in places.items()}


def _convnext_places(network):
    """Name of a parameter -> its layer in ConvNeXt's recipe: 0 the stem, up to 6 (nine blocks in stage 3) or 12."""
    last = 3 + -(-len(network.stages[2].blocks) // 3)
    places = {}
    for name, _ in network.named_parameters():
        found = re.match(r"stages\.(\d)\.(?:downsample|blocks\.(\d+))", name)
        stage, block = (int(found[1]), int(found[2] or 0)) if found else (-1, 0)
        places[name] = {-1: 0, 0: 1, 1: 2, 2: 3 + block // 3, 3: last}[stage]
    return places


def _places(network, coarse):
    """Name of a parameter -> its place in timm's own order of stem (0), stages or blocks."""
    matcher = network.group_matcher(coarse=coarse)
    places = group_parameters(network, matcher, reverse=True)
    return {key: int(place) for key, place in places.items()}
