"""The proof of a conversion: the source network against Detectron2's backbone, loaded from the written files.

The source network sees images as its project normalises them, from 0 to 1; Detectron2's backbone sees them as the
written config says. They are compared at the network's own size and at one that neither patches nor windows divide.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from pretrain.files.yaml_files import read_config

from ...config import add_loco_config
from ...modeling.timm import build  # noqa: F401, registers its backbones
from ...modeling.timm.backbone import TimmBackbone
from ...modeling.timm.network import Level, build_network, is_plain, levels_of, run
from ..sources.architecture import Undrawn
from ..sources.conventions import Conventions
from ..sources.source_type import Source
from ..verify import Difference, VerificationError, compare_maps, fill
from .references import reference
from .source import TimmWeights
from .variants import candidates

DEFAULT = (224, 224)  # of a network of which timm does not say its own
DETECTION = (203, 270)  # height and width that no patch and no window divides
SCALE = re.compile(r"(\.gamma(_[12])?|\.layer_scale|\.grn\.weight)$")  # the projects', torchvision's and timm's names
SILENT = 0.01  # a branch whose scale is below this at most hides what is wrong in it
LAST = "norm.weight"  # timm's name in a plain ViT that has the norm after its last block
LAST_NORM = "last_norm"  # what a plain ViT's map is called after the norm


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
    mean, std = (_channels(values) / 255 for values in source.conventions[1:3])
    maps: dict[str, dict[str, torch.Tensor]] = {}
    for mode in _modes(network.weights):
        maps[mode] = {}
        try:
            own, timms = (_opened(w) if mode == "opened" else w for w in (network.original, network.weights))
            computed = reference(network.found, own, name) if known else None
            computed = computed or _timms_own(name, timms, levels)
            for size in sizes(name):
                images = F.pad((pixels(size) / 255 - mean) / std, (0, -size[1] % multiple, 0, -size[0] % multiple))
                maps[mode] |= _named(_in_mode(computed, mode, images), levels, size)
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
    mean, std = (_channels(config["MODEL"][f"PIXEL_{key}"]) for key in ("MEAN", "STD"))
    got: dict[str, dict[str, torch.Tensor]] = {mode: {} for mode in wanted.maps}
    for mode, maps in got.items():
        if mode == "opened":  # the last
            backbone.network.load_state_dict(_opened(wanted.weights))
        for size in sizes(wanted.name):
            images = (pixels(size) - mean) / std
            images = images if config["INPUT"]["FORMAT"] == "RGB" else images.flip(1)
            maps |= _in_detectron2(backbone, mode, images, size)
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


def backbone_of(config: dict, final_norm: bool = False) -> TimmBackbone:
    """Detectron2's backbone for a config, without a pyramid and nothing frozen; all its weights are NaN.

    Args:
        config: as of :func:`network_config`.
        final_norm: MODEL.TIMM.FINAL_NORM.
    """
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(config))
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("_fpn_", "_")
    cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM = 0, "BN"
    cfg.MODEL.TIMM.FINAL_NORM, cfg.MODEL.TIMM.DROP_PATH = final_norm, 0.0
    with Undrawn():  # not on the meta device: Swin's tables of positions are no weights, and have to be computed
        backbone = build_backbone(cfg, ShapeSpec(channels=3))
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    return backbone


def sizes(name: str) -> list[tuple[int, int]]:
    """Height and width of the images that are compared: the network's own, and a detection's."""
    cfg = timm.get_pretrained_cfg(name)
    _, height, width = cfg.input_size if cfg else (3, *DEFAULT)
    return [(height, width), DETECTION]


def pixels(size: tuple[int, int]) -> torch.Tensor:
    """RGB images of smooth noise with some grain, (B, 3, height, width) float64, from 0 to 255; always the same.

    They are two, for the statistics of BatchNorm, and one if it is large.
    """
    generator, count = torch.Generator().manual_seed(0), 2 if max(size) < 300 else 1
    smooth = F.interpolate(torch.rand(count, 3, 7, 9, generator=generator), size=size, mode="bicubic")
    grain = torch.rand(count, 3, *size, generator=generator)
    return 255 * (0.85 * smooth + 0.15 * grain).clamp(0, 1).double()


def _channels(values):
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def _is_known(network, source):
    """Whether the network is one of the sizes whose definition is written out."""
    try:
        return source.encoder.name in candidates(network.found, source.layout)
    except ValueError:
        return False


def _timms_own(name, weights, levels) -> Callable:
    """timm's definition with its own weights, strictly loaded."""
    with Undrawn():
        network = build_network(name, final_norm=LAST in weights)
    network.load_state_dict(weights, strict=True)
    return _TimmMaps(network, levels, LAST in weights)


class _TimmMaps(nn.Module):
    def __init__(self, network: nn.Module, levels: tuple[Level, ...], has_norm: bool) -> None:
        super().__init__()
        self.network, self.levels, self.has_norm = network, levels, has_norm

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        indices = [level.index for level in self.levels]
        maps = run(self.network, images, indices)
        return [*maps, *run(self.network, images, indices, norm=True)] if self.has_norm else maps


def _in_mode(computed, mode, images):
    """The maps of a source network whose norms with statistics are in a mode; everything else is in evaluation."""
    if isinstance(computed, nn.Module):
        with _as_in(computed, mode) as dtype:
            return computed(images.to(dtype))
    with torch.no_grad():
        return computed(images.float())


def _in_detectron2(backbone, mode, images, size):
    with _as_in(backbone, mode) as dtype:
        maps = [*backbone(images.to(dtype)).values()]
    if backbone.final_norm:
        backbone.final_norm = False
        with _as_in(backbone, mode) as dtype:
            maps = [*backbone(images.to(dtype)).values(), *maps]
        backbone.final_norm = True
    return _named(maps, backbone._levels, size)


@contextmanager
def _as_in(network: nn.Module, mode: str) -> Iterator[torch.dtype]:
    """A network in a mode, without gradients; its statistics are as before at the end. Yields the type of its images.

    In training the few pixels of a small map would multiply the rounding of float32: there it computes in float64.
    """
    before = {name: value.clone() for name, value in network.named_buffers()}
    training = mode == "train"
    network.eval().to(torch.float64 if training else torch.float32)
    for module in network.modules():
        module.training = training and hasattr(module, "running_mean")
    with torch.no_grad():
        yield torch.float64 if training else torch.float32
    network.eval().float()
    for name, value in network.named_buffers():
        value.copy_(before[name])


def _named(maps, levels, size):
    """The maps by level and size, cropped to what the image covers."""
    names = [level.name for level in levels] + ([LAST_NORM] if len(maps) > len(levels) else [])
    strides = [level.stride for level in levels] + [levels[-1].stride]
    if len(maps) != len(names):
        raise VerificationError(f"{len(maps)} maps of the source network, expected {len(names)}")
    named = {}
    for name, stride, values in zip(names, strides, maps, strict=False):
        rows, columns = (math.ceil(side / stride) for side in size)
        named[f"{name} {size[0]}x{size[1]}"] = values[:, :, :rows, :columns]
    return named


def _same_bits(network, weights):
    """VerificationError if a tensor of the loaded backbone is not the source's: two that are exchanged may not show."""
    for name, value in network.state_dict().items():
        if not torch.equal(value, weights[name]):
            raise VerificationError(f"{name} of the written file is not the source's")


def _line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__
