"""The order of a network's parameters from its input to its maps: what FREEZE_AT freezes, and layer-wise decay."""

from timm.models import group_parameters
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
    places = _places(network, coarse=True)
    if is_plain(levels):
        last = levels[-1].index + 2  # the stem and all blocks
        return {key for key, place in places.items() if place < freeze_at or freeze_at >= last}
    if freeze_at >= 5:
        return set(places)
    if freeze_at <= 1:
        return {key for key, place in places.items() if place < freeze_at}
    below = [level for level in levels if int(level.name.removeprefix("res")) <= freeze_at]
    ends = [place for key, place in places.items() if below and key.startswith(below[-1].module + ".")]
    return {key for key, place in places.items() if place <= max(ends, default=0)}


def _places(network, coarse):
    """Name of a parameter -> its place in timm's own order of stem (0), stages or blocks."""
    matcher = network.group_matcher(coarse=coarse)
    places = group_parameters(network, matcher, reverse=True)
    return {key: int(place) for key, place in places.items()}
