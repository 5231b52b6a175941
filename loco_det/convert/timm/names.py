"""From the names of a project to timm's own: by timm's filter functions, and for torchvision's by rules of ours."""

import re
from collections.abc import Callable, Mapping

import torch
from timm.models import beit, convnext, regnet, swin_transformer, swin_transformer_v2, vision_transformer
from torch import nn

Weights = dict[str, torch.Tensor]
TABLE = "relative_position_bias_table"

_VIT = (
    (r"^class_token", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"(?<=\.)ln_(?=[12]\.)", "norm"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj\.", "attn.proj."),
    (r"mlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"mlp\.(3|linear_2)\.", "mlp.fc2."),
)
_CONVNEXT_PARTS = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}


def to_timm(weights: Mapping[str, torch.Tensor], family: str, network: nn.Module) -> Weights:
    """Rename the weights of a network for timm.

    Args:
        weights: the file's names -> tensors, without what is left out.
        family: a key of ``search.ANCHORS``.
        network: of timm, on any device: its class and shapes say how.

    Returns:
        dict: timm's names -> tensors, each of the same numbers, but for DINOv2's registers: timm adds the class token's
        position to it, and gives the registers none.

    Raises:
        ValueError: if a name is none of torchvision's, or timm's filter function cannot read the names.
    """
    if family in _TORCHVISION:
        renamed, expected = _TORCHVISION[family](weights), network.state_dict()
        for name, value in renamed.items():  # timm's small ConvNeXts have 1x1 convs for linear layers
            if name in expected and value.dim() == 2 and expected[name].dim() == 4:
                renamed[name] = value[:, :, None, None]
        return renamed
    named = _flat_blocks(weights) if family == "vit" else dict(weights)
    if isinstance(network, beit.Beit):
        named = _own_tables(named, len(network.blocks))
    if any(re.search(r"(^register_tokens$|\.mlp\.w12\.)", name) for name in named):
        named["mask_token"] = torch.zeros(1)  # by which timm knows DINOv2, and which it drops
    try:
        return dict(_filter_of(network, family)(named, network))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"timm's filter function cannot read its names ({type(error).__name__}: {reason})") from None


def _filter_of(network, family):
    if isinstance(network, beit.Beit):
        return beit.checkpoint_filter_fn
    functions = {
        "vit": vision_transformer.checkpoint_filter_fn,
        "convnext": convnext.checkpoint_filter_fn,
        "swin": swin_transformer.checkpoint_filter_fn,
        "swinv2": swin_transformer_v2.checkpoint_filter_fn,
        "torchvision-regnet": lambda weights, _: regnet._filter_fn(weights),
    }
    return functions.get(family, lambda weights, _: weights)


def _flat_blocks(weights):
    """DINOv2's blocks without their chunks, whose numbers within a chunk go on from the chunk before."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in weights.items()}


def _own_tables(weights, blocks):
    """A BEiT of pretraining has one table of relative positions for all blocks; each of timm's blocks has its own."""
    shared = f"rel_pos_bias.{TABLE}"
    if shared not in weights:
        return weights
    table = weights.pop(shared)
    return weights | {f"blocks.{i}.attn.{TABLE}": table.clone() for i in range(blocks)}


def _vit(weights):
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _VIT:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _convnext(weights):
    renamed = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"features\.0\.([01])\.(\w+)", name):
            new = f"stem.{match[1]}.{match[2]}"
        elif match := re.fullmatch(r"features\.([246])\.([01])\.(\w+)", name):
            new = f"stages.{int(match[1]) // 2}.downsample.{match[2]}.{match[3]}"
        elif match := re.fullmatch(r"features\.([1357])\.(\d+)\.layer_scale", name):
            new, value = f"stages.{int(match[1]) // 2}.blocks.{match[2]}.gamma", value.flatten()
        elif match := re.fullmatch(r"features\.([1357])\.(\d+)\.(block\.[0235])\.(\w+)", name):
            new = f"stages.{int(match[1]) // 2}.blocks.{match[2]}.{_CONVNEXT_PARTS[match[3]]}.{match[4]}"
        else:
            raise ValueError(f"{name!r} is not a name of torchvision's ConvNeXt")
        renamed[new] = value
    return renamed


def _swin(weights):
    renamed = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"features\.0\.([02])\.(\w+)", name):
            new = f"patch_embed.{'proj' if match[1] == '0' else 'norm'}.{match[2]}"
        elif match := re.fullmatch(r"features\.([246])\.(reduction|norm)\.(\w+)", name):
            new = f"layers.{int(match[1]) // 2}.downsample.{match[2]}.{match[3]}"
        elif match := re.fullmatch(r"features\.([1357])\.(\d+)\.(norm[12]|attn|mlp)\.(.+)", name):
            part = {"0.weight": "fc1.weight", "0.bias": "fc1.bias", "3.weight": "fc2.weight", "3.bias": "fc2.bias"}
            rest = part.get(match[4], match[4]) if match[3] == "mlp" else match[4]
            new = f"layers.{int(match[1]) // 2}.blocks.{match[2]}.{match[3]}.{rest}"
        else:
            raise ValueError(f"{name!r} is not a name of torchvision's Swin Transformer")
        renamed[new] = value
    return renamed


_TORCHVISION: dict[str, Callable] = {
    "torchvision-vit": _vit,
    "torchvision-convnext": _convnext,
    "torchvision-swin": _swin,
}
