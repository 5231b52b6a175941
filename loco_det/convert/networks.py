"""The two networks that a conversion has to make equal, and the config that says which Detectron2 is to build."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torchvision.models.resnet import Bottleneck

from pretrain.encoders import resnet_shape

from ..config import add_loco_config
from ..modeling import backbones  # noqa: F401, registers its backbones
from .architecture import skeleton

STAGES_OF_FPN = {"presnet50": ["res2", "res4", "res5", "res7"]}  # of stride 4, 8, 16 and 32, about


def in_detectron2(arch):
    """Whether Detectron2's own ResNet can be this encoder; if not, ``modeling.backbones`` makes a backbone of it.

    Detectron2's has basic blocks for a res2 of 64 channels only, and cannot pad as TensorFlow does.
    """
    shape = resnet_shape(arch)
    return bool(shape) and not shape.same and (shape.bottleneck or shape.out == 64)


def detectron2_config(arch, conventions, weights):
    """The part of a Detectron2 config that weights need; a config that has another backbone at all has to lose that.

    Args:
        arch: name of the encoder.
        conventions: ``layouts.Conventions``.
        weights: for MODEL.WEIGHTS.

    Returns:
        dict: nested, as in a YAML file.
    """
    model = {"WEIGHTS": weights, "PIXEL_MEAN": list(conventions.mean), "PIXEL_STD": list(conventions.std)}
    if in_detectron2(arch):
        shape = resnet_shape(arch)
        model["RESNETS"] = {
            "DEPTH": shape.depth,
            "STEM_OUT_CHANNELS": shape.stem,
            "NUM_GROUPS": shape.groups,
            "WIDTH_PER_GROUP": shape.width,
            "RES2_OUT_CHANNELS": shape.out,
            "STRIDE_IN_1X1": conventions.stride_in_1x1,
            "RES5_DILATION": 1,
        }
    else:
        stages = STAGES_OF_FPN.get(arch, ["res2", "res3", "res4", "res5"])
        model["BACKBONE"] = {"NAME": "build_encoder_fpn_backbone"}
        model["ENCODER"] = arch
        model["RESNETS"] = {"OUT_FEATURES": stages}
        model["FPN"] = {"IN_FEATURES": stages}
    return {"MODEL": model, "INPUT": {"FORMAT": conventions.format}}


def source_network(arch, state_dict, conventions):
    """The encoder with these weights, sharing their memory.

    Args:
        arch: name of the encoder.
        state_dict: complete.
        conventions: ``layouts.Conventions``.
    """
    encoder = skeleton(arch)
    if conventions.stride_in_1x1:
        for block in encoder.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    encoder.load_state_dict(state_dict, strict=True, assign=True)
    return encoder


def detectron2_network(config):
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
    with torch.device("meta"):  # no memory twice, no time and no random numbers for weights that are replaced
        encoder = skeleton(cfg.MODEL.ENCODER) if cfg.MODEL.ENCODER else None
        cfg.MODEL.RESNETS.OUT_FEATURES = list(encoder.stage_names if encoder else ("res2", "res3", "res4", "res5"))
        backbone = build_backbone(cfg, ShapeSpec(channels=3))
    backbone.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    return backbone
