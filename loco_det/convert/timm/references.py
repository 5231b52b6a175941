"""The source networks that a conversion is compared with, computed from the file's own names and not by timm.

Plain ViTs and ConvNeXts are written out here after the definitions of their projects: vision_transformer.py of dino,
dinov2, ibot and moco-v3, models_vit.py of mae, modeling_finetune.py of beit2, convnext.py and convnextv2.py of
ConvNeXt(-V2). Swin Transformers, and all networks with torchvision's names, are torchvision's. A network of another
kind is timm's, built anew, with the weights that timm's filter function gives.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import RegNet
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from .names import TABLE
from .search import FoundNetwork

Weights = Mapping[str, torch.Tensor]
Maps = list[torch.Tensor]  # of the stages; of a plain ViT the last block's, without and with the norm after it
EPSILON = 1e-6  # of the layer norms of ViT and ConvNeXt


def vit_maps(w: Weights, images: torch.Tensor, heads: int) -> Maps:
    """The last block's map of a plain ViT in the names of DINO, DINOv2, MAE, MoCo v3, iBOT, BEiT v2, or timm.

    Args:
        w: name -> tensor.
        images: (B, 3, H, W), normalised; H and W are multiples of the patch.
        heads: of the attention, which shapes do not show.

    Returns:
        list: the map (B, C, H / patch, W / patch), and the same after the last norm if there is one.
    """
    patch = w["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    batch, channels, rows, columns = x.shape
    x = x.flatten(2).transpose(1, 2)
    first = w["cls_token"].expand(batch, -1, -1)
    registers = [w[name].expand(batch, -1, -1) for name in ("register_tokens", "reg_token") if name in w]
    if "reg_token" in w:  # timm's: positions for the patches alone
        x = x + _positions(w["pos_embed"], rows, columns)
    elif "pos_embed" in w:
        x = x + _positions(w["pos_embed"][:, 1:], rows, columns)
        first = first + w["pos_embed"][:, :1]
    x = torch.cat([first, *registers, x], 1)
    pattern = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(.+)")
    blocks: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in w.items():
        if match := pattern.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = value
    for index in sorted(blocks):
        bias = _relative(blocks[index].get(f"attn.{TABLE}", w.get(f"rel_pos_bias.{TABLE}")), rows, columns)
        x = _vit_block(x, blocks[index], heads, bias)
    maps = [x, F.layer_norm(x, (channels,), w["norm.weight"], w["norm.bias"], EPSILON)] if "norm.weight" in w else [x]
    return [y[:, -rows * columns :].transpose(1, 2).reshape(batch, channels, rows, columns) for y in maps]


def _positions(places, rows, columns):
    """Position embeddings (1, N, C) of a square for another grid, by timm's bicubic interpolation with antialiasing."""
    side = math.isqrt(places.shape[1])
    if (rows, columns) == (side, side):
        return places
    square = places.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(rows, columns), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)


def _relative(table, rows, columns):
    """BEiT's bias of the attention (heads, 1 + N, 1 + N) by the places of two patches; 0 of a network without a table.

    Args:
        table: (D, heads): the differences of two places in a square, and then three entries of the class token: to a
            patch, from a patch, and to itself.
        rows, columns: of the patches.
    """
    if table is None:
        return 0
    side, heads = math.isqrt(table.shape[0] - 3), table.shape[1]
    square = table[:-3].reshape(side, side, heads).permute(2, 0, 1)
    if (side, side) != (2 * rows - 1, 2 * columns - 1):
        square = F.interpolate(square[None], size=(2 * rows - 1, 2 * columns - 1), mode="bicubic")[0]
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    bias = square.new_zeros(heads, 1 + len(y), 1 + len(y))
    bias[:, 1:, 1:] = square[:, y[:, None] - y + rows - 1, x[:, None] - x + columns - 1]
    bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = table[-3][:, None], table[-2][:, None], table[-1]
    return bias


def _vit_block(x, w, heads, bias):
    """A block before whose parts is a norm, and behind them DINOv2's or BEiT's layer scale."""
    batch, tokens, channels = x.shape
    y = F.layer_norm(x, (channels,), w["norm1.weight"], w["norm1.bias"], EPSILON)
    shift = w.get("attn.qkv.bias")
    if "attn.q_bias" in w:  # BEiT's keys have none
        shift = torch.cat([w["attn.q_bias"], torch.zeros_like(w["attn.q_bias"]), w["attn.v_bias"]])
    q, k, v = F.linear(y, w["attn.qkv.weight"], shift).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attention = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    y = (attention.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, channels)
    y = F.linear(y, w["attn.proj.weight"], w["attn.proj.bias"])
    x = x + y * w.get("ls1.gamma", w.get("gamma_1", 1))
    y = F.layer_norm(x, (channels,), w["norm2.weight"], w["norm2.bias"], EPSILON)
    packed, last = ("mlp.w12", "mlp.w3") if "mlp.w12.weight" in w else ("mlp.fc1", "mlp.fc2")
    y = F.linear(y, w[f"{packed}.weight"], w[f"{packed}.bias"])
    if y.shape[-1] == 2 * w[f"{last}.weight"].shape[1]:  # SwiGLU of DINOv2's ViT-g
        gate, value = y.chunk(2, -1)
        y = F.silu(gate) * value
    else:
        y = F.gelu(y)
    y = F.linear(y, w[f"{last}.weight"], w[f"{last}.bias"])
    return x + y * w.get("ls2.gamma", w.get("gamma_2", 1))


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


def _own_convnext(w):
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


class StageMaps(nn.Module):
    """A network of torchvision that gives out the maps of its stages."""

    def __init__(self, network: nn.Module, stages: list[str], channels_last: bool = False) -> None:
        """
        Args:
            network: of torchvision.
            stages: names of the modules whose outputs they are.
            channels_last: whether these are (B, H, W, C).
        """
        super().__init__()
        self.network, self.stages, self.channels_last = network, stages, channels_last

    def forward(self, images: torch.Tensor) -> Maps:
        """(B, 3, H, W), normalised -> the stages' maps, (B, C, H', W')."""
        maps: Maps = []
        hooks = [
            self.network.get_submodule(name).register_forward_hook(lambda module, given, output: maps.append(output))
            for name in self.stages
        ]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def torchvision_swin(w: Weights) -> StageMaps:
    """torchvision's Swin Transformer with the weights of a file in torchvision's names, Swin's own or timm's."""
    if "features.0.0.weight" not in w:
        w = _swin_in_torchvision(w)
    places = [f"features.{place}" for place in (1, 3, 5, 7)]
    depths = [len({name.split(".")[2] for name in w if name.startswith(f"{place}.")}) for place in places]
    tables = [w[f"{place}.0.attn.relative_position_bias_table"] for place in places]
    side = (math.isqrt(tables[0].shape[0]) + 1) // 2
    network = SwinTransformer(
        patch_size=list(w["features.0.0.weight"].shape[2:]),
        embed_dim=w["features.0.0.weight"].shape[0],
        depths=depths,
        num_heads=[table.shape[1] for table in tables],
        window_size=[side, side],
        stochastic_depth_prob=0.0,
        num_classes=1,
    )
    return StageMaps(_loaded(network, w), places, channels_last=True)


def _swin_in_torchvision(w):
    """Swin's own names, or timm's, which has the reduction at the beginning of the next stage."""
    own = "layers.0.downsample.reduction.weight" in w
    renamed = {}
    for name, value in w.items():
        new = name.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")
        if match := re.match(r"layers\.(\d)\.downsample\.", new):
            new = f"features.{2 * int(match[1]) + (2 if own else 0)}.{new[match.end() :]}"
        elif match := re.match(r"layers\.(\d)\.blocks\.", new):
            new = f"features.{2 * int(match[1]) + 1}.{new[match.end() :]}"
        renamed[new.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")] = value
    return renamed


def torchvision_convnext(w: Weights) -> StageMaps:
    """torchvision's ConvNeXt with the weights of a file in its names."""
    places = [f"features.{place}" for place in (1, 3, 5, 7)]
    widths = [w[f"{place}.0.layer_scale"].shape[0] for place in places]
    depths = [len({name.split(".")[2] for name in w if name.startswith(f"{place}.")}) for place in places]
    settings = [
        CNBlockConfig(width, following, depth)
        for width, following, depth in zip(widths, [*widths[1:], None], depths, strict=True)
    ]
    return StageMaps(_loaded(ConvNeXt(settings, stochastic_depth_prob=0.0, num_classes=1), w), places)


def torchvision_regnet(w: Weights) -> StageMaps:
    """torchvision's RegNet with the weights of a file in its names."""
    stages = []
    for stage in range(1, 5):
        first = f"trunk_output.block{stage}.block{stage}-0"
        pattern = rf"trunk_output\.block{stage}\.(block{stage}-\d+)\."
        depth = len({match[1] for name in w if (match := re.match(pattern, name))})
        stages.append((w[f"{first}.f.a.0.weight"].shape[0], w[f"{first}.f.b.0.weight"].shape[1], depth))
    params = BlockParams(
        depths=[depth for _, _, depth in stages],
        widths=[width for width, _, _ in stages],
        group_widths=[group for _, group, _ in stages],
        bottleneck_multipliers=[1.0] * 4,
        strides=[2] * 4,
        se_ratio=0.25 if "trunk_output.block1.block1-0.f.se.fc1.weight" in w else None,
    )
    return StageMaps(_loaded(RegNet(params, num_classes=1), w), [f"trunk_output.block{k}" for k in range(1, 5)])


def torchvision_vit_maps(w: Weights, images: torch.Tensor, heads: int) -> Maps:
    """The last block's map of torchvision's ViT, which has torchvision's own attention; any size by its positions.

    Args:
        w: torchvision's names -> tensors.
        images: (B, 3, H, W), normalised; H and W are multiples of the patch.
        heads: of the attention.
    """
    patch, width = w["conv_proj.weight"].shape[-1], w["conv_proj.weight"].shape[0]
    layers = {name.split(".")[2] for name in w if name.startswith("encoder.layers.")}
    first = "encoder.layers.encoder_layer_0.mlp."
    hidden = w[f"{first}0.weight" if f"{first}0.weight" in w else f"{first}linear_1.weight"].shape[0]
    side = math.isqrt(w["encoder.pos_embedding"].shape[1] - 1) * patch
    network = VisionTransformer(side, patch, len(layers), heads, width, hidden, num_classes=1)
    _loaded(network, w)
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    x = network.conv_proj(images).flatten(2).transpose(1, 2)
    places = w["encoder.pos_embedding"]
    x = torch.cat([network.class_token.expand(len(x), -1, -1), x], 1)
    x = x + torch.cat([places[:, :1], _positions(places[:, 1:], rows, columns)], 1)
    x = network.encoder.layers(x)
    return [y[:, 1:].transpose(1, 2).reshape(len(x), width, rows, columns) for y in (x, network.encoder.ln(x))]


def _loaded(network, w):
    """A network of torchvision with weights for all of it but its head and last norm, in evaluation mode."""
    missing, extra = network.load_state_dict(w, strict=False)
    unused = re.compile(r"(heads?|classifier|fc|norm)\.|.*(relative_position_index|num_batches)")
    used = [name for name in missing if not unused.match(name)]
    if used or extra:
        raise ValueError(f"not torchvision's {type(network).__name__}: {[*used, *extra][:3]}")
    return network.eval()


def reference(found: FoundNetwork, original: Weights, name: str) -> nn.Module | Callable[[torch.Tensor], Maps] | None:
    """The source network of a file.

    Args:
        found: which kind it is.
        original: the file's names -> tensors.
        name: timm's, by which the heads of a ViT are known.

    Returns:
        A function of normalised images (B, 3, H, W), whose sides are multiples of the patch, or of 32, to the maps of
        its stages; of a plain ViT one or two. None: there is none but timm's own.
    """
    w = {key: value.detach().float() for key, value in original.items() if value.is_floating_point()}
    if found.family in ("vit", "torchvision-vit"):
        with torch.device("meta"):
            network: Any = timm.create_model(name, num_classes=0)
        heads = network.blocks[0].attn.num_heads
        maps = vit_maps if found.family == "vit" else torchvision_vit_maps
        return lambda images: maps(w, images, heads)
    if found.family == "convnext":
        own = w if "stages.0.0.dwconv.weight" in w else _own_convnext(w)
        return lambda images: convnext_maps(own, images)
    makers = {
        "swin": torchvision_swin,
        "torchvision-swin": torchvision_swin,
        "torchvision-convnext": torchvision_convnext,
        "torchvision-regnet": torchvision_regnet,
    }
    return makers[found.family](w) if found.family in makers else None
