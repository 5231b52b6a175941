"""A plain ViT after the definitions of its projects, on the names of their files.

They are vision_transformer.py of dino, dinov2, ibot and moco-v3, models_vit.py of mae, modeling_finetune.py of beit2.
"""

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from .names import TABLE

Weights = Mapping[str, torch.Tensor]
Maps = list[torch.Tensor]  # of the stages; of a plain ViT the last block's, without and with the norm after it
EPSILON = 1e-6  # of the layer norms


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
        x = x + positions_of_grid(w["pos_embed"], rows, columns)
    elif "pos_embed" in w:
        x = x + positions_of_grid(w["pos_embed"][:, 1:], rows, columns)
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


def positions_of_grid(places: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
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
