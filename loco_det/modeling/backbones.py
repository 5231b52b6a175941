"""Any encoder of pretraining as a Detectron2 backbone, alone or under an FPN."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.encoders import Encoder, build_encoder

from .frozen import PartlyFrozen


class EncoderBackbone(PartlyFrozen):
    """The stages of an encoder under Detectron2's interface, trained and frozen as Detectron2's ResNet is.

    Stages whose stride is no power of two, PResNet-50's (4, 6.22, 9.33, 14, 18.67, 28), are given out in one of two
    ways. As they are: ``output_shape()`` has their true stride, a fraction. It is not rounded, because boxes would then
    be off by up to 4 % and nothing would say so; Detectron2's ROI poolers refuse a fraction. Or as levels of a pyramid:
    bilinear interpolation, PResNet's own way of changing sizes, to the size that the nearest power of two gives (in the
    logarithm), so that FPN, anchors and ROIAlign have the scales that they assume. For PResNet-50 that makes res2,
    res4, res5 and res7 the levels of stride 4, 8, 16 and 32. This is our reading: the LoCo paper has no detection
    figures for PResNet-50. Stages whose stride is a power of two are passed through untouched in both ways.

    Attributes:
        encoder: the encoder; its parameters are ``encoder.<the encoder's own names>`` here.
    """

    def __init__(
        self,
        encoder: Encoder,
        out_features: Iterable[str],
        norm: str = "BN",
        freeze_at: int = 0,
        pyramid: bool = False,
    ) -> None:
        """
        Args:
            encoder: see :class:`pretrain.encoders.Encoder`; ``strides`` are required here. It becomes part of the
                backbone: norms are replaced in it, and parameters frozen.
            out_features: names of the stages to return.
            norm: what its BatchNorm layers become: "BN" (they stay), "SyncBN" or "FrozenBN".
            freeze_at: as MODEL.BACKBONE.FREEZE_AT: 0 nothing, 1 the stem, which is the first block of the first stage,
                2 to 4 the first stages, up to res<k>; 5 and above everything, as many stages as there are, because
                that is what 5 says in frozen recipes. Norms in there become FrozenBN.
            pyramid: whether strides are made powers of two.

        Raises:
            ValueError: if a stage or norm is not known, or the encoder cannot be used.
        """
        super().__init__()
        names, kind = tuple(encoder.stage_names), type(encoder).__name__
        if getattr(encoder, "prefix_tokens", None) is not None:
            raise ValueError(
                f"MODEL.ENCODER: {kind}'s stages give tokens and no maps: a ViT of timm's is MODEL.TIMM.NAME with "
                "MODEL.BACKBONE.NAME build_timm_fpn_backbone"
            )
        if not out_features or not set(out_features) <= set(names):
            raise ValueError(f"MODEL.RESNETS.OUT_FEATURES {list(out_features)}: expected some of {', '.join(names)}")
        if len(getattr(encoder, "strides", None) or ()) != len(names):
            raise ValueError(f"a detector needs the stride of each stage: give {kind} {len(names)} strides")
        self.encoder = _with_norm(encoder, norm)
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = dict(zip(names, encoder.channels, strict=True))
        self._resized = {}  # name of a stage -> the stride that it is brought to
        self._out_feature_strides = {}
        for name, stride in zip(names, encoder.strides, strict=True):
            level = nearest_power(stride)
            if pyramid and level != stride:
                self._resized[name] = stride = level
            self._out_feature_strides[name] = int(stride) if stride == int(stride) else stride
        self._freeze(freeze_at)
        own = set(encoder.modules())
        if any(isinstance(m, _BatchNorm) and m not in own for stage in encoder.stages for m in stage.modules()):
            raise ValueError(f"{kind}.stages holds a BatchNorm that was replaced: make it a property reading children")

    def _freeze(self, freeze_at):
        """Freeze the stages below and, as DistributedDataParallel wants no idle parameters, what no output needs."""
        used = self.encoder.stages[: self.encoder.stage_names.index(self._out_features[-1]) + 1]
        places = {(k, i): block for k, stage in enumerate(used, 2) for i, block in enumerate(stage)}
        blocks = [block for place, block in places.items() if freeze_at < (1 if place == (2, 0) else min(place[0], 5))]
        training = {module for block in blocks for module in block.modules()}
        self._frozen = [module for module in self.encoder.modules() if not training.intersection(module.modules())]
        for module in set(self.encoder.modules()) - training:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = False
            # On the parents in the encoder and not on the blocks: these may be views, made anew at each call
            for name, child in module.named_children():
                if isinstance(child, _BatchNorm) and child not in training:
                    setattr(module, name, FrozenBatchNorm2d.convert_frozen_batchnorm(child))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            x: images, (B, 3, H, W), normalised.

        Returns:
            dict: name of a stage -> features, (B, channels, about H / stride, about W / stride); resized ones
            exactly these, rounded up.
        """
        sides, features = x.shape[2:], {}
        for name, stage in zip(self.encoder.stage_names, self.encoder.stages, strict=True):
            x = stage(x)
            if name in self._out_features:
                features[name] = x
                if name in self._resized:
                    size = [math.ceil(side / self._resized[name]) for side in sides]
                    features[name] = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            if name == self._out_features[-1]:
                break  # nothing above is needed
        return features


def nearest_power(stride: float) -> int:
    """The power of two whose logarithm is nearest to that of ``stride``."""
    return 2 ** round(math.log2(stride))


def _with_norm(encoder, norm):
    """Replace the BatchNorm layers of an encoder; returns it."""
    if norm == "FrozenBN":
        return FrozenBatchNorm2d.convert_frozen_batchnorm(encoder)
    if norm == "SyncBN":
        return nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    if norm != "BN":
        raise ValueError(f"MODEL.RESNETS.NORM {norm!r}: an encoder's BatchNorm can be BN, SyncBN or FrozenBN")
    return encoder


def _bottom_up(cfg, pyramid):
    """The encoder that the config names, as a backbone."""
    resnets = cfg.MODEL.RESNETS
    encoder = build_encoder(cfg.MODEL.ENCODER)
    return EncoderBackbone(encoder, resnets.OUT_FEATURES, resnets.NORM, cfg.MODEL.BACKBONE.FREEZE_AT, pyramid)


@BACKBONE_REGISTRY.register()
def build_encoder_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EncoderBackbone:
    """``MODEL.ENCODER`` with its features as they are.

    Args:
        cfg: a Detectron2 config with loco-det's keys.
        input_shape: of the images; not needed.

    Raises:
        ValueError: as :class:`EncoderBackbone`.
    """
    return _bottom_up(cfg, pyramid=False)


@BACKBONE_REGISTRY.register()
def build_encoder_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """``MODEL.ENCODER`` under Detectron2's FPN with p6, as ``build_resnet_fpn_backbone``.

    Args:
        cfg, input_shape: as :func:`build_encoder_backbone`.

    Raises:
        ValueError: as :class:`EncoderBackbone`, or if the strides of FPN.IN_FEATURES do not double up to 32.
    """
    bottom_up = _bottom_up(cfg, pyramid=True)
    fpn, shapes = cfg.MODEL.FPN, bottom_up.output_shape()
    strides = [shapes[name].stride if name in shapes else None for name in fpn.IN_FEATURES]
    if not strides or strides != [2**k for k in range(6 - len(strides), 6)]:
        encoder = bottom_up.encoder
        stages = list(zip(encoder.strides, encoder.stage_names, strict=True))
        nearest = [min(stages, key=lambda stage: abs(math.log2(stage[0] / level)))[1] for level in (4, 8, 16, 32)]
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {fpn.IN_FEATURES} have strides {strides} (None: not in RESNETS.OUT_FEATURES), "
            f"expected doubling up to 32; the stages nearest to 4, 8, 16 and 32 are {nearest}"
        )
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, LastLevelMaxPool(), fpn.FUSE_TYPE)
