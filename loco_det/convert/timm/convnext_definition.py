"""A ConvNeXt, V1 or V2, after convnext.py and convnextv2.py of its projects, on the names of their files."""

import re

import torch
import torch.nn.functional as F

from .vit_definition import EPSILON, Maps, Weights


def convnext_maps(w: Weights, images: torch.Tensor) -> Maps:
    """The maps of the four stages of a ConvNeXt, V1 or V2, in the names of its project.

    Args:
        w: name -> tensor.
        images: (B, 3, H, W), normalised.
    """
    x, maps = images, []
    for stage in range(4):
        place = f"downsample_layers.{stage}"
        if stage == 0:
            x = F.conv2d(x, w[f"{place}.0.weight"], w[f"{place}.0.bias"], stride=4)
            x = _channels_norm(x, w[f"{place}.1.weight"], w[f"{place}.1.bias"])
        else:
            x = _channels_norm(x, w[f"{place}.0.weight"], w[f"{place}.0.bias"])
            x = F.conv2d(x, w[f"{place}.1.weight"], w[f"{place}.1.bias"], stride=2)
        for block in range(len({n.split(".")[2] for n in w if n.startswith(f"stages.{stage}.")})):
            inside = f"stages.{stage}.{block}."
            x = x + _convnext_block(x, {n.removeprefix(inside): v for n, v in w.items() if n.startswith(inside)})
        maps.append(x)
    return maps


def names_of_convnext(w: Weights) -> dict[str, torch.Tensor]:
    """The names of ConvNeXt's project for timm's, and linear layers for 1x1 convs."""
    renamed = {}
    for name, value in w.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        renamed[name] = value.flatten(1) if "pwconv" in name and value.dim() == 4 else value
    return renamed


def _channels_norm(x, weight, bias):
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, EPSILON).permute(0, 3, 1, 2)


def _convnext_block(x, w):
    """The branch of a block: V2 has a global response norm where V1 has a layer scale at the end."""
    x = F.conv2d(x, w["dwconv.weight"], w["dwconv.bias"], padding=3, groups=x.shape[1])
    x = _channels_norm(x, w["norm.weight"], w["norm.bias"]).permute(0, 2, 3, 1)
    x = F.gelu(F.linear(x, w["pwconv1.weight"], w["pwconv1.bias"]))
    if "grn.gamma" in w:
        size = x.norm(dim=(1, 2), keepdim=True)
        x = w["grn.gamma"] * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + w["grn.beta"] + x
    x = F.linear(x, w["pwconv2.weight"], w["pwconv2.bias"])
    return (x * w.get("gamma", 1)).permute(0, 3, 1, 2)
