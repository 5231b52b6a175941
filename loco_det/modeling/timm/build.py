"""Detectron2's builders of backbones with a network of timm."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from .backbone import TimmBackbone
from .network import LAST, STRIDES, is_plain, levels_of

BUILDERS = ("build_timm_backbone", "build_timm_fpn_backbone")  # values of MODEL.BACKBONE.NAME
SCALES = (4.0, 2.0, 1.0, 0.5)  # of a map of stride 16: p2 to p5


class PlainPyramid(SimpleFeaturePyramid):
    """ViTDet's pyramid on a plain network, with the attributes that the project's detectors use.

    Detectron2's own class names its divisibility in a way that its ImageList does not read, so that images of any size
    are padded to no multiple of 32, and the levels of its pyramid do not fit together.
    """

    net: TimmBackbone

    def __init__(self, net: TimmBackbone, out_channels: int, norm: str, square_pad: int) -> None:
        """
        Args:
            net: the network, its map brought to stride 16.
            out_channels: of the pyramid's maps.
            norm: as MODEL.FPN.NORM; "": none.
            square_pad: side of the square that images are padded to; 0: multiples of 32.
        """
        super().__init__(net, LAST, out_channels, SCALES, LastLevelMaxPool(), norm, square_pad)
        for stage in self.stages:
            for name, module in list(stage._modules.items()):
                if module is None:  # a norm that is none, which Detectron2's class calls
                    stage.register_module(name, nn.Identity())

    @property
    def bottom_up(self) -> TimmBackbone:
        """The plain network, as of an FPN."""
        return self.net

    @property
    def size_divisibility(self) -> int:
        """What images are padded to multiples of."""
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """As of an FPN: the side of a square that images are padded to, or 0."""
        return {"square_size": self._square_pad}


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
