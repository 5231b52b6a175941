"""The two networks that a conversion has to make equal, and the config that says which Detectron2 is to build."""

import contextlib
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torchvision.models.resnet import Bottleneck

from pretrain.encoders import STAGE_NAMES, Encoder, EncoderSpec, NamedEncoder, ResNetShape, is_own_code, parse_encoder

from ..config import add_loco_config
from ..modeling.backbones import nearest_power  # and registers its backbones
from .sources.architecture import Undrawn, skeleton
from .sources.conventions import Conventions

STAGES_OF_FPN = {"presnet50": ["res2", "res4", "res5", "res7"]}  # of stride 4, 8, 16 and 32, about


def in_detectron2(encoder: EncoderSpec) -> bool:
    """Whether Detectron2's own ResNet can be this encoder; if not, ``modeling.backbones`` makes a backbone of it.

    Detectron2's has basic blocks for a res2 of 64 channels only, and cannot pad as TensorFlow does.
    """
    if not isinstance(encoder, ResNetShape):
        return False
    return not encoder.same and (encoder.bottleneck or encoder.out == 64)


def detectron2_config(encoder: EncoderSpec, conventions: Conventions, weights: str) -> dict:
    """The part of a Detectron2 config that weights need; a config that has another backbone at all has to lose that.

    Args:
        encoder: which it is.
        conventions: what it expects of its surroundings.
        weights: for MODEL.WEIGHTS.

    Returns:
        dict: nested, as in a YAML file.
    """
    mean, std = list(conventions.mean), list(conventions.std)
    model: dict[str, Any] = {"WEIGHTS": weights, "PIXEL_MEAN": mean, "PIXEL_STD": std}
    if isinstance(encoder, ResNetShape) and in_detectron2(encoder):
        model["RESNETS"] = {
            "DEPTH": encoder.depth,
            "STEM_OUT_CHANNELS": encoder.stem,
            "NUM_GROUPS": encoder.groups,
            "WIDTH_PER_GROUP": encoder.width,
            "RES2_OUT_CHANNELS": encoder.out,
            "STRIDE_IN_1X1": conventions.stride_in_1x1,
            "RES5_DILATION": 1,
        }
    else:
        stages = stages_of_fpn(encoder)
        model["BACKBONE"] = {"NAME": "build_encoder_fpn_backbone"}
        model["ENCODER"] = encoder.name
        model["RESNETS"] = {"OUT_FEATURES": stages}
        model["FPN"] = {"IN_FEATURES": stages}
    return {"MODEL": model, "INPUT": {"FORMAT": conventions.format}}


def stages_of_fpn(encoder: EncoderSpec) -> list[str]:
    """The stages that an FPN is built on: those of stride 4, 8, 16 and 32, about.

    Raises:
        ValueError: if an encoder of the user's own has no such stages.
    """
    if not (isinstance(encoder, NamedEncoder) and encoder.is_own_code):
        return STAGES_OF_FPN.get(encoder.name, list(STAGE_NAMES))
    network = skeleton(encoder)
    if len(getattr(network, "strides", ())) != len(network.stage_names):
        raise ValueError(f"{encoder.name} has no strides, which a detector needs: give it one for each stage")
    levels = {nearest_power(s): name for name, s in zip(network.stage_names, network.strides, strict=True)}
    if missing := [level for level in (4, 8, 16, 32) if level not in levels]:
        raise ValueError(
            f"{encoder.name} has stages of stride {', '.join(f'{s:g}' for s in network.strides)}, but an FPN needs "
            f"about 4, 8, 16 and 32: none is near {missing[0]}"
        )
    return [levels[level] for level in (4, 8, 16, 32)]


def source_network(encoder: EncoderSpec, state_dict: dict[str, torch.Tensor], conventions: Conventions) -> Encoder:
    """The encoder with these weights, sharing their memory.

    Args:
        encoder: which it is.
        state_dict: complete.
        conventions: whose ``stride_in_1x1`` says where bottlenecks have their strides.
    """
    network = skeleton(encoder)
    if conventions.stride_in_1x1:
        for block in network.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    network.load_state_dict(state_dict, strict=True, assign=True)
    return network


def detectron2_network(config: dict) -> nn.Module:
    """Detectron2's backbone for a config, without FPN, with BatchNorm and nothing frozen; all its weights are NaN.

    Args:
        config: as :func:`detectron2_config` returns.
    """
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(config))
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("_fpn_", "_")
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "BN"
    own_code = is_own_code(cfg.MODEL.ENCODER)  # which may compute with its tensors
    # no memory twice, no time and no random numbers for weights that are replaced
    with contextlib.ExitStack() as stack:
        if not own_code:
            stack.enter_context(torch.device("meta"))
            stack.enter_context(Undrawn())
        encoder = skeleton(parse_encoder(cfg.MODEL.ENCODER)) if cfg.MODEL.ENCODER else None
        cfg.MODEL.RESNETS.OUT_FEATURES = list(encoder.stage_names if encoder else STAGE_NAMES)
        backbone = build_backbone(cfg, ShapeSpec(channels=3))
    if not own_code:
        backbone.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    return backbone
