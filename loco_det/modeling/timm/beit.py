"""BEiT's attention with relative positions, on images of any size; timm's own takes one size alone."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.models.beit import Beit, gen_relative_position_index
from torch import nn


class Grid:
    """How many patches there are in the images of this forward pass, and which entry of a table each pair has.

    Attributes:
        size: rows and columns.
        index: of the class token and all patches, (1 + N, 1 + N).
    """

    size: tuple[int, int] = (0, 0)
    index: torch.Tensor

    def set(self, size: tuple[int, int], device: torch.device) -> None:
        """Keep a size, from which the index follows."""
        if size != self.size or self.index.device != device:
            self.size, self.index = size, gen_relative_position_index(size, device=device)


class AnySizePatches(nn.Module):
    """timm's patch embedding for images of any size, with its parts and their names; it keeps the grid."""

    def __init__(self, patches: PatchEmbed, grid: Grid) -> None:
        """
        Args:
            patches: timm's, whose parts are taken over.
            grid: where the size is kept for the attention.
        """
        super().__init__()
        self.proj, self.norm = patches.proj, patches.norm
        self.patch_size, self.img_size, self.grid_size = patches.patch_size, patches.img_size, patches.grid_size
        self.num_patches, self.grid = patches.num_patches, grid

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, N, C), of images padded to a multiple of the patch."""
        rows, columns = self.patch_size
        x = self.proj(F.pad(images, (0, -images.shape[3] % columns, 0, -images.shape[2] % rows)))
        self.grid.set((x.shape[2], x.shape[3]), x.device)
        return self.norm(x.flatten(2).transpose(1, 2))

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of this height and width."""
        return -(-size[0] // self.patch_size[0]), -(-size[1] // self.patch_size[1])


class AnySizeAttention(nn.Module):
    """timm's attention of a BEiT whose table of relative positions is interpolated for the grid of the images.

    The interpolation is timm's bicubic one of tables; the entries of the class token stay. At the size that the network
    was trained on the table is used as it is.
    """

    def __init__(self, attention: Any, grid: Grid) -> None:
        """
        Args:
            attention: timm's, whose parts are taken over.
            grid: of the images.
        """
        super().__init__()
        self.num_heads, self.window_size, self.grid = attention.num_heads, attention.window_size, grid
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_bias, self.v_bias = attention.q_bias, attention.v_bias
        self.relative_position_bias_table = attention.relative_position_bias_table

    def forward(self, x: torch.Tensor, shared_rel_pos_bias: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 1 + N, C) -> the same; a network whose blocks have tables has no shared bias."""
        batch, tokens, channels = x.shape
        bias = None if self.q_bias is None else torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).reshape(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias().to(q.dtype))
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))

    def _bias(self):
        """(1, heads, 1 + N, 1 + N) of the grid."""
        table, (rows, columns) = self.relative_position_bias_table, self.grid.size
        if self.grid.size != tuple(self.window_size):
            shape = ((2 * rows - 1) * (2 * columns - 1) + 3, self.num_heads)
            table = resize_rel_pos_bias_table_simple(table, self.grid.size, shape)
        tokens = len(self.grid.index)
        return table[self.grid.index.view(-1)].view(1, tokens, tokens, -1).permute(0, 3, 1, 2)


def take_any_size(network: nn.Module) -> None:
    """Replace the patch embedding and attention of a BEiT with tables, in place; other networks stay as they are."""
    if not isinstance(network, Beit) or network.rel_pos_bias is not None or network.pos_embed is not None:
        return
    if all(block.attn.relative_position_bias_table is not None for block in network.blocks):
        grid = Grid()
        network.patch_embed = AnySizePatches(network.patch_embed, grid)
        for block in network.blocks:
            block.attn = AnySizeAttention(block.attn, grid)
