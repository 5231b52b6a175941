"""The maps of a source network and of Detectron2's backbone for the same images, by mode, level and size."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from ...config import add_loco_config
from ...modeling.timm import build  # noqa: F401, registers its backbones
from ...modeling.timm.backbone import TimmBackbone
from ...modeling.timm.network import Level, build_network, run
from ..sources.architecture import Undrawn
from ..verify import VerificationError
from .vit_definition import Maps

DEFAULT = (224, 224)  # of a network of which timm does not say its own
DETECTION = (203, 270)  # height and width that no patch and no window divides
LAST = "norm.weight"  # timm's name in a plain ViT that has the norm after its last block
LAST_NORM = "last_norm"  # what a plain ViT's map is called after the norm


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


def by_channel(values: Sequence[float]) -> torch.Tensor:
    """Three numbers as (1, 3, 1, 1) float64."""
    return torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)


def timms_own(name: str, weights: dict[str, torch.Tensor], levels: tuple[Level, ...]) -> nn.Module:
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


def maps_in_mode(computed: Callable[[torch.Tensor], Maps], mode: str, images: torch.Tensor) -> Maps:
    """The maps of a source network whose norms with statistics are in a mode; everything else is in evaluation."""
    if isinstance(computed, nn.Module):
        with _as_in(computed, mode) as dtype:
            return computed(images.to(dtype))
    with torch.no_grad():
        return computed(images.float())


def maps_in_detectron2(
    backbone: TimmBackbone, mode: str, images: torch.Tensor, size: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """The maps of Detectron2's backbone in a mode, by level and size; of a plain ViT also those before its norm."""
    with _as_in(backbone, mode) as dtype:
        maps = [*backbone(images.to(dtype)).values()]
    if backbone.final_norm:
        backbone.final_norm = False
        with _as_in(backbone, mode) as dtype:
            maps = [*backbone(images.to(dtype)).values(), *maps]
        backbone.final_norm = True
    return named_maps(maps, backbone._levels, size)


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


def named_maps(maps: Maps, levels: Sequence[Level], size: tuple[int, int]) -> dict[str, torch.Tensor]:
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
