"""Training a detector in bfloat16 on a CPU. Detectron2's own mixed precision is float16 on a GPU."""

import functools
from typing import Any

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import nn

from .light_detector import LightHead


def train_in_bfloat16(model: nn.Module) -> None:
    """Let a detector compute its convolutions and matrix products in bfloat16 in training mode, in place.

    What decides where a box is stays in float32, because bfloat16 has 8 bits: a coordinate of 1000 pixels would be off
    by up to 4. That is ROIAlign with its boxes, and scores, deltas and masks from where they are predicted to the
    losses. Parameters and gradients are float32, too, so that no loss has to be scaled. Evaluation stays in float32.

    Args:
        model: a GeneralizedRCNN of Detectron2, or our LightDetector, on the CPU.
    """
    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(_float_inputs)
        elif isinstance(module, StandardRPNHead | FastRCNNOutputLayers | LightHead):
            module.register_forward_hook(_float_outputs)
        elif isinstance(module, BaseMaskRCNNHead) and hasattr(module, "predictor"):
            module.predictor.register_forward_hook(_float_outputs)
    model.forward = functools.partial(_forward, model)  # type: ignore[method-assign]


def _forward(model, *args):
    with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
        return type(model).forward(model, *args)


def _float_inputs(module, args):
    return _as_float(args)


def _float_outputs(module, args, output):
    return _as_float(output)


def _as_float(value: Any) -> Any:
    """The tensors in lists and tuples, those of bfloat16 as float32; all else as it is."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    return type(value)(map(_as_float, value)) if type(value) in (list, tuple) else value
