"""The proof of a conversion: the source network against Detectron2's backbone, loaded from the written files.

The source network sees images as its project normalises them, from 0 to 1; Detectron2's backbone sees them as the
written config says. They are compared at the network's own size and at one that neither patches nor windows divide.
"""

import os
import re
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pretrain.files.yaml_files import read_config

from ...modeling.timm.network import is_plain, levels_of
from ..sources.conventions import Conventions
from ..sources.source_type import Source
from ..verify import Difference, VerificationError, compare_maps, fill
from .maps import LAST, backbone_of, by_channel, maps_in_detectron2, maps_in_mode, named_maps, pixels, sizes, timms_own
from .references import reference
from .source import TimmWeights
from .variants import candidates

SCALE = re.compile(r"(\.gamma(_[12])?|\.layer_scale|\.grn\.weight)$")  # the projects', torchvision's and timm's names
SILENT = 0.01  # a branch whose scale is below this at most hides what is wrong in it


class Wanted(NamedTuple):
    """What the source network computes.

    Attributes:
        maps: mode ("eval", and "train" and "opened" if it has what for) -> "level HEIGHTxWIDTH" -> (B, C, H', W').
        weights: timm's names -> tensors, which the written file must hold bit for bit.
        name: timm's, of the network.
    """

    maps: dict[str, dict[str, torch.Tensor]]
    weights: dict[str, torch.Tensor]
    name: str


def network_config(name: str, conventions: Conventions, weights: str) -> dict:
    """The part of a Detectron2 config that the weights of a network of timm need.

    Args:
        name: timm's.
        conventions: what it expects of its images.
        weights: for MODEL.WEIGHTS.

    Returns:
        dict: nested, as in a YAML file.
    """
    levels = levels_of(name)
    model = {
        "WEIGHTS": weights,
        "PIXEL_MEAN": list(conventions.mean),
        "PIXEL_STD": list(conventions.std),
        "BACKBONE": {"NAME": "build_timm_fpn_backbone"},
        "TIMM": {"NAME": name},
    }
    if not is_plain(levels):
        model["FPN"] = {"IN_FEATURES": [level.name for level in levels]}
    return {"MODEL": model, "INPUT": {"FORMAT": conventions.format}}


def source_maps(source: Source, network: TimmWeights) -> Wanted:
    """What the source network computes for the test images.

    Args:
        source: what the checkpoint is.
        network: its weights.

    Raises:
        VerificationError: if the names of the file do not make the network that its layout says.
    """
    name, levels = source.encoder.name, levels_of(source.encoder.name)
    known, multiple = _is_known(network, source), levels[-1].stride
    mean, std = (by_channel(values) / 255 for values in source.conventions[1:3])
    maps: dict[str, dict[str, torch.Tensor]] = {}
    for mode in _modes(network.weights):
        maps[mode] = {}
        try:
            own, timms = (_opened(w) if mode == "opened" else w for w in (network.original, network.weights))
            computed = reference(network.found, own, name) if known else None
            computed = computed or timms_own(name, timms, levels)
            for size in sizes(name):
                images = F.pad((pixels(size) / 255 - mean) / std, (0, -size[1] % multiple, 0, -size[0] % multiple))
                maps[mode] |= named_maps(maps_in_mode(computed, mode, images), levels, size)
        except (KeyError, RuntimeError, ValueError) as error:
            raise VerificationError(f"its names do not make the source network ({_line(error)})") from error
    return Wanted(maps, network.weights, name)


def verify_network(
    path: str | os.PathLike, config_file: str | os.PathLike, wanted: Wanted
) -> dict[str, dict[str, Difference]]:
    """Compare Detectron2's backbone, built and loaded from the written files, with the source network.

    Args:
        path: of the written weights, which Detectron2 reads.
        config_file: of the written config.
        wanted: of :func:`source_maps`.

    Returns:
        dict: "eval" and "train" -> {level and size: Difference}.

    Raises:
        VerificationError: if Detectron2 cannot fill its backbone exactly from the file, with the source's bits, or if a
            map differs by more than rounding.
    """
    config = read_config(str(config_file))
    backbone = backbone_of(config, LAST in wanted.weights)
    fill(backbone, path)
    _same_bits(backbone.network, wanted.weights)
    mean, std = (by_channel(config["MODEL"][f"PIXEL_{key}"]) for key in ("MEAN", "STD"))
    got: dict[str, dict[str, torch.Tensor]] = {mode: {} for mode in wanted.maps}
    for mode, maps in got.items():
        if mode == "opened":  # the last
            backbone.network.load_state_dict(_opened(wanted.weights))
        for size in sizes(wanted.name):
            images = (pixels(size) - mean) / std
            images = images if config["INPUT"]["FORMAT"] == "RGB" else images.flip(1)
            maps |= maps_in_detectron2(backbone, mode, images, size)
    differences = compare_maps(wanted.maps, got)
    return {"eval": differences["eval"], "train": differences.get("train", differences["eval"])}


def _modes(weights):
    """How the networks are compared.

    In evaluation, and in training, in which a network differs only by the statistics of its BatchNorm. "opened" is
    evaluation with ones for all scales at the end of branches: training begins with layer scales that are all but 0,
    and the branches of an early checkpoint would be silent.
    """
    modes = ["eval"]
    modes += ["train"] if any(name.endswith("running_mean") for name in weights) else []
    scales = [value.abs().max() for name, value in weights.items() if SCALE.search(name)]
    return [*modes, "opened"] if scales and min(scales) < SILENT else modes


def _opened(weights):
    """Weights with ones for the scales of branches."""
    return {name: torch.ones_like(value) if SCALE.search(name) else value for name, value in weights.items()}


def _is_known(network, source):
    """Whether the network is one of the sizes whose definition is written out."""
    try:
        return source.encoder.name in candidates(network.found, source.layout)
    except ValueError:
        return False


def _same_bits(network, weights):
    """VerificationError if a tensor of the loaded backbone is not the source's: two that are exchanged may not show."""
    for name, value in network.state_dict().items():
        if not torch.equal(value, weights[name]):
            raise VerificationError(f"{name} of the written file is not the source's")


def _line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
