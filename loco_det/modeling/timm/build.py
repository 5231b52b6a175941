"""Detectron2's builders of backbones with a network of timm, which is imported, in a second, by those who use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

if TYPE_CHECKING:
    from .backbone import TimmBackbone

BUILDERS = ("build_timm_backbone", "build_timm_fpn_backbone")  # values of MODEL.BACKBONE.NAME


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """``MODEL.TIMM.NAME`` with its maps as they are.

    Args:
        cfg: a Detectron2 config with loco-det's keys.
        input_shape: of the images; not needed.

    Raises:
        ValueError: as :class:`TimmBackbone`.
    """
    return _network(cfg, None, pyramid=False)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """``MODEL.TIMM.NAME`` under a pyramid of p2 to p6: a hierarchical network under FPN, a plain ViT under ViTDet's.

    Args:
        cfg, input_shape: as :func:`build_timm_backbone`.

    Raises:
        ValueError: as :class:`TimmBackbone`, or if a hierarchical network lacks one of FPN.IN_FEATURES.
    """
    from .network import LAST, is_plain, levels_of
    from .pyramid import PlainPyramid

    fpn, square = cfg.MODEL.FPN, cfg.MODEL.TIMM.SQUARE_PAD
    check_levels(cfg)
    if is_plain(levels_of(cfg.MODEL.TIMM.NAME)):
        net = _network(cfg, [LAST], pyramid=True)
        return PlainPyramid(net, fpn.OUT_CHANNELS, fpn.NORM, square)
    net = _network(cfg, fpn.IN_FEATURES, pyramid=True)
    return FPN(net, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, LastLevelMaxPool(), fpn.FUSE_TYPE, square)


def check_levels(cfg: CfgNode) -> None:
    """Refuse a network that does not fit under the pyramid of a config, without building it.

    Raises:
        ValueError: one line: timm has no such network, it has no feature maps or takes no images of any size, or a
            hierarchical one lacks one of FPN.IN_FEATURES.
    """
    from .network import STRIDES, is_plain, levels_of

    name, wanted = cfg.MODEL.TIMM.NAME, list(cfg.MODEL.FPN.IN_FEATURES)
    if not name:
        raise ValueError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} needs a network: set MODEL.TIMM.NAME")
    levels = levels_of(name)
    has = [level.name for level in levels]
    if cfg.MODEL.BACKBONE.NAME != BUILDERS[1] or is_plain(levels):
        return
    names = [f"res{stride.bit_length() - 1}" for stride in STRIDES]
    if not wanted or wanted != names[-len(wanted) :]:
        raise ValueError(f"MODEL.FPN.IN_FEATURES {wanted}: expected the last ones of {names}")
    if missing := [key for key in wanted if key not in has]:
        strides = ", ".join(str(level.stride) for level in levels)
        raise ValueError(
            f"MODEL.TIMM.NAME {name} has maps of strides {strides} and no {', '.join(missing)}, which "
            "MODEL.FPN.IN_FEATURES names: take another network"
        )


def _network(cfg, out_features, pyramid):
    """The network that the config names."""
    from .backbone import TimmBackbone

    timm = cfg.MODEL.TIMM
    return TimmBackbone(
        timm.NAME,
        out_features,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        drop_path=timm.DROP_PATH,
        final_norm=timm.FINAL_NORM,
        pyramid=pyramid,
    )
